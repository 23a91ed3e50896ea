"""Kinds for tests of files. Started in place of `-m jobs`, as `unruly_jobs.py` is."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from pydantic import BaseModel, JsonValue, SecretStr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from jobs import JOBS, Job
from jobs.context import JobContext


class Shown(BaseModel, extra="forbid"):
    """It may be told to spoil what it was given, for whoever comes next."""

    spoil: bool = False


def show_inputs(context: JobContext, params: Shown) -> JsonValue:
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


class Written(BaseModel, extra="forbid"):
    """What to leave in the output folder, and beside it."""

    files: dict[str, str] = {}
    links: dict[str, str] = {}
    token: SecretStr = SecretStr("")


def write_files(context: JobContext, params: Written) -> JsonValue:
    """Paths are relative to the output folder, or lead out of it."""
    for path, text in params.files.items():
        target = context.outputs / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for path, target_of in params.links.items():
        (context.outputs / path).symlink_to(target_of)
    return sorted(params.files)


KINDS = {"show_inputs": Job(Shown, show_inputs), "write_files": Job(Written, write_files)}

if __name__ == "__main__":
    JOBS.update(KINDS)
    jobs.__main__.main()
