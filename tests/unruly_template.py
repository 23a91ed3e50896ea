"""A template whose forks know the kinds of `unruly_jobs.py`. Started instead of `jobs.template`.

    python tests/unruly_template.py MODULES SOCKET

Imports only MODULES, separated by commas: all that jobs compute with takes seconds of CPU time.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.template
from tests import unruly_jobs


def preload() -> None:
    """Import MODULES only."""
    for module in filter(None, sys.argv.pop(1).split(",")):
        importlib.import_module(module)


if __name__ == "__main__":
    jobs.template.preload = preload
    unruly_jobs.register()
    jobs.template.main()
