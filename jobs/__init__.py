"""The kinds of job that `start` can run. To add one: write a module, add a line to `JOBS`.

A module of a kind has `Params` (pydantic: every field described and limited) and
`run(context, params) -> result` (a small JSON value). The worker's own process imports it for
`Params`, so nothing heavy is imported at its top: torch only inside `run`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue

from jobs import command, generate_images, sleep, train_diffusion
from jobs.prepare import Prepare


class Keep(NamedTuple):
    """What a kind would load anew in each attempt, and may find loaded."""

    #: The path, among the inputs, of all that it is loaded from. What is kept is known by this path
    #: and its content, so loading may depend on nothing else.
    input: Callable[[Any], str]
    #: Loads it from the folder of inputs into host memory; never onto a GPU, never in threads. It
    #: outlives the attempt whose inputs these are: nothing of it may stay mapped from a file there,
    #: as what safetensors hands out is. Copy it (`clone`), or who comes later finds other bytes in
    #: it, or is killed (SIGBUS).
    load: Callable[[Path, Any], Any]


class Job(NamedTuple):
    """The definition behind a kind."""

    params: type[BaseModel]
    run: Callable[[Any, Any], JsonValue]
    #: What it needs once on a machine or volume; the job finds it as `context.prepared`.
    prepare: Prepare | None = None
    #: What is kept in memory between consecutive processes, as `context.kept`.
    keep: Keep | None = None
    #: What must be free on each GPU that an attempt may use before it begins, if there is any.
    gpu_bytes: int = 0


#: Less than this free, and not even the smallest net fits beside a CUDA context.
SMALLEST_GPU_BYTES = 1 << 30
#: The kind whose params depend on what the operator declares (`jobs.programs`).
COMMAND = "command"

JOBS: dict[str, Job] = {
    COMMAND: Job(command.Params, command.run),
    "generate_images": Job(
        generate_images.Params,
        generate_images.run,
        keep=Keep(generate_images.kept_input, generate_images.load),
        gpu_bytes=SMALLEST_GPU_BYTES,
    ),
    "sleep": Job(sleep.Params, sleep.run),
    "train_diffusion": Job(
        train_diffusion.Params, train_diffusion.run, gpu_bytes=SMALLEST_GPU_BYTES
    ),
}
