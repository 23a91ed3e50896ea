"""The kinds of job that `start` can run. To add one: write a module, add a line to `JOBS`.

A module of a kind has `Params` (pydantic: every field described and limited) and
`run(context, params) -> result` (a small JSON value). The worker's own process imports it for
`Params`, so nothing heavy is imported at its top: torch only inside `run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue

from jobs import command, sleep, train_diffusion
from jobs.prepare import Prepare


class Job(NamedTuple):
    """The definition behind a kind."""

    params: type[BaseModel]
    run: Callable[[Any, Any], JsonValue]
    #: What it needs once on a machine or volume; the job finds it as `context.prepared`.
    prepare: Prepare | None = None


#: The kind whose params depend on what the operator declares (`jobs.programs`).
COMMAND = "command"

JOBS: dict[str, Job] = {
    COMMAND: Job(command.Params, command.run),
    "sleep": Job(sleep.Params, sleep.run),
    "train_diffusion": Job(train_diffusion.Params, train_diffusion.run),
}
