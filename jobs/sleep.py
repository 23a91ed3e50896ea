"""The smallest kind: it sleeps, step by step. The tests' workhorse.

Everything a job can do is here once: report progress, write artifacts, hand over checkpoints,
resume from one, notice that it should stop. The rest of `Params` lets it misbehave on request.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Annotated

from pydantic import BaseModel, Field, JsonValue

from jobs import Job, JobContext, JobStopped

LINE = "a line that the job printed ".ljust(1023, ".")


class Params(BaseModel, frozen=True, extra="forbid"):
    """What a caller may ask of it."""

    seconds: Annotated[
        float, Field(ge=0, le=604_800, description="How long all steps take together.")
    ] = 0.0
    steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="How many steps the time is cut into.")
    ] = 1
    checkpoint_every: Annotated[
        int, Field(ge=0, description="Hand over a checkpoint after every so many steps; 0: never.")
    ] = 0
    artifacts: Annotated[
        int, Field(ge=0, le=10_000, description="How many files to write, before the first step.")
    ] = 0
    artifact_bytes: Annotated[
        int, Field(ge=0, le=1 << 34, description="The size of each of these files.")
    ] = 16
    fail_at: Annotated[
        int | None, Field(ge=1, description="Raise an exception instead of doing this step.")
    ] = None
    exit_code: Annotated[
        int | None,
        Field(ge=0, le=255, description="Exit with this code after the last step, no result."),
    ] = None
    ignore_sigterm: Annotated[
        bool, Field(description="Be stubborn: neither a request to stop nor SIGTERM ends it.")
    ] = False
    spawn_grandchild: Annotated[
        bool, Field(description="Start a process of its own and leave it behind.")
    ] = False
    print_lines: Annotated[
        int, Field(ge=0, le=1_000_000, description="How many lines of 1 KiB to print at first.")
    ] = 0


def run(context: JobContext, params: Params) -> JsonValue:
    """Sleep through the steps that no earlier attempt has done."""
    _misbehave(params)
    _write_artifacts(context, params)
    done = int(context.resume_from.read_text()) if context.resume_from else 0
    first = done + 1
    for step in range(first, params.steps + 1):
        if step == params.fail_at:
            raise RuntimeError(f"asked to fail at step {step}")
        _sleep_one_step(context, params, done)
        done = step
        context.progress(done, params.steps, "sleeping")
        if params.checkpoint_every and done % params.checkpoint_every == 0:
            _save(context, done)
    if params.exit_code is not None:
        sys.exit(params.exit_code)
    return {
        "steps_run_by_this_attempt": done - first + 1,
        "resumed_from": first - 1 if context.resume_from else None,
    }


def _sleep_one_step(context: JobContext, params: Params, done: int) -> None:
    """Sleep, but look up often enough that a stop does not have to wait for the step's end."""
    end = time.monotonic() + params.seconds / params.steps
    while (left := end - time.monotonic()) > 0:
        if context.should_stop() and not params.ignore_sigterm:
            _save(context, done)
            raise JobStopped
        time.sleep(min(left, 0.05))


def _save(context: JobContext, done: int) -> None:
    """Write all that a later attempt needs, which here is one number, and hand it over."""
    path = context.checkpoints / "done.txt"
    path.write_text(str(done))
    context.checkpoint(path)


def _write_artifacts(context: JobContext, params: Params) -> None:
    for number in range(1, params.artifacts + 1):
        path = context.outputs / f"artifact-{number}.bin"
        with path.open("wb") as file:
            file.truncate(params.artifact_bytes)
        context.artifact(path)


def _misbehave(params: Params) -> None:
    if params.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if params.spawn_grandchild:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(86400)"])
    for _ in range(params.print_lines):
        print(LINE)  # noqa: T201 - printing is what this is about


KIND = Job(Params, run)
