"""A kind that offers samples as it goes on, for tests of what a takeover keeps.

The first attempt offers `first` files and waits to be killed; a later one writes `second` and ends.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pydantic import BaseModel, JsonValue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child.context import JobContext
from jobs import JOBS, Job


class Params(BaseModel, frozen=True, extra="forbid"):
    first: tuple[str, ...]
    second: tuple[str, ...] = ()
    #: Sizes of the files of a checkpoint, in bytes.
    checkpoint: tuple[int, ...] = ()


def run(context: JobContext, params: Params) -> JsonValue:
    for name in params.first if context.attempt == 1 else params.second:
        path = context.outputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of attempt {context.attempt}")
        context.artifact(path)
    if params.checkpoint:
        folder = context.checkpoints / "state"
        folder.mkdir()
        for number, size in enumerate(params.checkpoint):
            (folder / str(number)).write_bytes(bytes(size))
        context.checkpoint(folder)
    context.progress(1, 2)
    while context.attempt == 1:
        time.sleep(0.05)
    return None


KINDS = {"sampling": Job(Params, run)}

if __name__ == "__main__":
    JOBS.update(KINDS)
    jobs.__main__.main()
