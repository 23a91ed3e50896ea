"""A kind that imports torch and reports: what every kind that computes begins with.

Started in place of `-m jobs`, or, with `--template`, of `-m jobs.template`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs import JOBS, Job


class Params(BaseModel):
    """None."""


def run(context: Any, _params: Params) -> None:
    """Import torch, and say so."""
    import torch

    context.progress(1, message=torch.__version__)


def register() -> None:
    """Let `start` run it."""
    JOBS["import_torch"] = Job(Params, run)


if __name__ == "__main__":
    register()
    if sys.argv[1] == "--template":
        del sys.argv[1]
        import jobs.template

        jobs.template.main()
    else:
        import jobs.__main__

        jobs.__main__.main()
