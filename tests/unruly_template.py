"""A template whose forks know the kinds of `unruly_jobs.py`. Started instead of `jobs.template`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.template
import tests.unruly_jobs  # noqa: F401 - registers its kinds

if __name__ == "__main__":
    jobs.template.main()
