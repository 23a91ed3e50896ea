"""The kind `approximate_pi`: approximate pi, round by round.

Replace `Params` and `run` by your own. Try it out, without a worker:

    python -m jobs run approximate_pi --params '{"rounds": 5}'
    python -m pytest tests/test_approximate_pi.py
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import BaseModel, Field, JsonValue

# The worker itself imports this module. Import heavy libraries (torch, numpy, ...) inside `run`, or
# in a module of its own that `run` imports.
from jobs import Job, JobContext, JobStopped


class Params(BaseModel, frozen=True, extra="forbid"):
    """What a caller may ask of it: every field described and limited."""

    rounds: Annotated[
        int, Field(ge=1, le=100_000, description="How many lines the table gets.")
    ] = 20
    terms: Annotated[
        int, Field(ge=1, le=10_000_000, description="How many terms of the series a round adds.")
    ] = 100_000
    checkpoint_every: Annotated[
        int, Field(ge=1, description="Hand over a checkpoint every so many rounds.")
    ] = 5


def run(context: JobContext, params: Params) -> JsonValue:
    """Add up Leibniz's series, one round after the other. What it returns is the result."""
    # An earlier attempt may have handed over a checkpoint before its worker went away.
    sums: list[float] = []
    if context.resume_from is not None:
        sums = json.loads(context.resume_from.read_text())
    while len(sums) < params.rounds:
        # Ask often: after some seconds without an answer the worker ends the job by force.
        if context.should_stop():
            save(context, sums)
            raise JobStopped
        before = sums[-1] if sums else 0.0
        sums.append(before + sum_of_round(len(sums), params.terms))
        # Cheap, so call it at every step. Every name beside these is a figure that callers see.
        context.progress(len(sums), params.rounds, "adding", pi=sums[-1])
        if len(sums) % params.checkpoint_every == 0:
            save(context, sums)
    # All that lies in `outputs` at the end can be downloaded. `artifact` offers a file at once.
    table = context.outputs / "pi.csv"
    lines = [f"{number},{pi!r}\n" for number, pi in enumerate(sums, 1)]
    table.write_text("".join(["round,pi\n", *lines]))
    context.artifact(table)
    return {"pi": sums[-1]}


def sum_of_round(number: int, terms: int) -> float:
    """The terms of pi = 4 - 4/3 + 4/5 - ... that belong to one round."""
    first = number * terms
    numbers = range(first, first + terms)
    return sum((-4.0 if number % 2 else 4.0) / (2 * number + 1) for number in numbers)


def save(context: JobContext, sums: list[float]) -> None:
    """Write all that a later attempt needs, and hand it over: the file is moved away."""
    path = context.checkpoints / "sums.json"
    path.write_text(json.dumps(sums))
    context.checkpoint(path)


# A module that declares `KIND` is a kind: `start` can run it by the name of the module.
KIND = Job(Params, run)
