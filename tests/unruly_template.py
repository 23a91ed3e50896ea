"""A template whose forks know the kinds of `unruly_jobs.py`. Started instead of `jobs.template`.

    python tests/unruly_template.py [light] SOCKET

`light`: imports none of what jobs compute with, which takes seconds of CPU time.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.template
from tests import unruly_jobs

if __name__ == "__main__":
    if sys.argv[1] == "light":
        del sys.argv[1]
        jobs.template.PRELOADED = ()  # type: ignore[misc]
    unruly_jobs.register()
    jobs.template.main()
