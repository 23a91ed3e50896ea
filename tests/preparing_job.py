"""A kind that sets something up. Started in place of `-m jobs`, as `unruly_jobs.py` is.

Each setting up leaves a line in `$PREPARED_LOG`, so that a test can count them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pydantic import BaseModel, JsonValue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child.context import JobContext
from child.prepare import Prepare
from jobs import JOBS, Job


class Params(BaseModel, extra="forbid"):
    """None."""


def fetch(setup: JobContext) -> None:
    """Takes as long as `$PREPARE_SECONDS` says; fails while `$PREPARE_FAILS` names a file."""
    with Path(os.environ["PREPARED_LOG"]).open("a") as log:
        log.write(f"{os.getpid()}\n")
    (setup.outputs / "half").write_text("not whole yet")
    steps = 20
    for step in range(steps):
        setup.progress(step, steps, "fetching weights")
        time.sleep(float(os.environ["PREPARE_SECONDS"]) / steps)
    if Path(os.environ["PREPARE_FAILS"]).exists():
        raise ConnectionError("the weights' server is away")
    (setup.outputs / "weights").write_text("weights")


def use(context: JobContext, _params: Params) -> JsonValue:
    """What was set up."""
    assert context.prepared is not None
    return {path.name: path.read_text() for path in context.prepared.iterdir()}


KINDS = {"prepares": Job(Params, use, Prepare("v1", fetch))}

if __name__ == "__main__":
    JOBS.update(KINDS)
    jobs.__main__.main()
