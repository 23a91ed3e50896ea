"""The kinds of job that `start` can run. To add one, write a module in this folder.

A module of a kind has `Params` (pydantic: every field described and limited),
`run(context, params) -> result` (a small JSON value), and `KIND = Job(Params, run)`; the kind is
called like the module. The worker's own process imports it, so nothing heavy is imported at its
top: torch only inside `run`. All that it needs of the worker can be imported from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from child.context import JobContext, JobFailed, JobStopped
from child.prepare import Prepare
from jobs.kinds import Job, Keep, Kinds

__all__ = [
    "COMMAND",
    "JOBS",
    "Job",
    "JobContext",
    "JobFailed",
    "JobStopped",
    "Keep",
    "Prepare",
]

#: The kind whose params depend on what the operator declares (`programs.declaration`).
COMMAND = "command"

#: Every kind by name; its module is imported when it is first looked up.
JOBS: Final = Kinds(__name__, Path(__file__).parent)
