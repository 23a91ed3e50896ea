"""Kinds for tests of files and logs. Started in place of `-m jobs`, as `unruly_jobs.py` is."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from pydantic import BaseModel, JsonValue, SecretStr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child.context import JobContext
from jobs import JOBS, Job


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
    sparse: dict[str, int] = {}
    token: SecretStr = SecretStr("")


def write_files(context: JobContext, params: Written) -> JsonValue:
    """Paths are relative to the output folder, or lead out of it."""
    for path, text in params.files.items():
        target = context.outputs / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for path, size in params.sparse.items():
        with (context.outputs / path).open("wb") as file:
            file.truncate(size)
    for path, target_of in params.links.items():
        (context.outputs / path).symlink_to(target_of)
    return sorted(params.files)


class Source(BaseModel, extra="forbid"):
    """Where to find what to print: a pipe with a name, as a rule."""

    path: str


def print_out(_context: JobContext, params: Source) -> JsonValue:
    """Print what comes, as it comes, to its end."""
    with open(params.path, "rb", buffering=0) as source:  # noqa: PTH123 - unbuffered
        while chunk := source.read(65536):
            os.write(1, chunk)
    return None


class Flood(BaseModel, extra="forbid"):
    """How much to print."""

    megabytes: int


def print_much(_context: JobContext, params: Flood) -> JsonValue:
    """Numbered lines of 64 bytes, as fast as it can."""
    for first in range(1, params.megabytes * 16384, 16384):
        lines = (b"%d " % number for number in range(first, first + 16384))
        sys.stdout.buffer.write(b"\n".join(line.ljust(63, b".") for line in lines) + b"\n")
    return None


KINDS = {
    "show_inputs": Job(Shown, show_inputs),
    "write_files": Job(Written, write_files),
    "print_out": Job(Source, print_out),
    "print_much": Job(Flood, print_much),
}

if __name__ == "__main__":
    JOBS.update(KINDS)
    jobs.__main__.main()
