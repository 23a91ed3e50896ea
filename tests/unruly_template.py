"""A template whose forks know the kinds of `unruly_jobs.py`. Started instead of `jobs.template`.

    python tests/unruly_template.py MODULES SOCKET

Imports only MODULES, separated by commas: all that jobs compute with takes seconds of CPU time.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.template
from tests import unruly_jobs

if __name__ == "__main__":
    jobs.template.PRELOADED = tuple(filter(None, sys.argv.pop(1).split(",")))  # type: ignore[misc]
    unruly_jobs.register()
    jobs.template.main()
