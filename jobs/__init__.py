"""The kinds of job that `start` can run. To add one, write a module in this folder.

A module of a kind has `Params` (pydantic: every field described and limited),
`run(context, params) -> result` (a small JSON value), and `KIND = Job(Params, run)`; the kind is
called like the module. The worker's own process imports it, so nothing heavy is imported at its
top: torch only inside `run`. All that it needs of the worker can be imported from here.
"""

from __future__ import annotations

from pathlib import Path

from child.context import JobContext, JobFailed, JobStopped
from child.prepare import Prepare
from jobs.kinds import Job, Keep, find_kinds

__all__ = [
    "BROKEN",
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

# At the end: the modules of kinds import from here.
JOBS, BROKEN = find_kinds(__name__, Path(__file__).parent)
