"""A kind that tells what it was given. Started in place of `-m jobs`, as `unruly_jobs.py` is."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from pydantic import BaseModel, JsonValue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from jobs import JOBS, Job
from jobs.context import JobContext


class Params(BaseModel, extra="forbid"):
    """It may be told to spoil what it was given, for whoever comes next."""

    spoil: bool = False


def run(context: JobContext, params: Params) -> JsonValue:
    """The sha256 of each file among the inputs, by path."""
    files = sorted(path for path in context.inputs.rglob("*") if path.is_file())
    told: dict[str, JsonValue] = {
        path.relative_to(context.inputs).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    if params.spoil:
        for path in files:
            path.write_bytes(b"spoilt")
    return told


JOB = Job(Params, run)

if __name__ == "__main__":
    JOBS["show_inputs"] = JOB
    jobs.__main__.main()
