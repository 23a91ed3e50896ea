"""A template whose forks know the kinds of `unruly_jobs.py`. Started instead of `jobs.template`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.template
from tests import unruly_jobs

if __name__ == "__main__":
    unruly_jobs.register()
    jobs.template.main()
