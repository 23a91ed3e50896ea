"""Children as on a kernel without Landlock. The runner starts this file in place of `-m jobs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child import confine

if __name__ == "__main__":
    confine.can_confine = lambda: False
    jobs.__main__.main()
