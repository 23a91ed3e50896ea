"""What `python -m jobs new NAME` writes: a kind that works, and its tests. `KIND` is its name.

The files pass ruff, strict mypy and pytest as they are; tests/test_authoring.py holds them to it.
"""

from __future__ import annotations

from typing import Final


def module_of(kind: str) -> str:
    """The source of a new kind."""
    return _MODULE.replace("KIND", kind)


def test_of(kind: str) -> str:
    """The source of its tests."""
    imports = {
        "jobs.context": "from jobs.context import JobContext, JobStopped",
        f"jobs.{kind}": f"from jobs.{kind} import Params, run",
    }
    in_order = "\n".join(imports[module] for module in sorted(imports))
    return _TEST.replace("IMPORTS", in_order).replace("KIND", kind)


_MODULE: Final = '''\
"""The kind `KIND`: approximate pi, round by round.

Replace this, `Params` and `run` by what you need. Try it out, without a worker:

    python -m jobs run KIND --params '{"rounds": 5}'
    python -m pytest tests/test_KIND.py
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, JsonValue

from jobs.context import JobStopped

# The worker itself imports this module, for `Params`. What is heavy (torch, numpy, ...) is
# therefore imported inside `run`, or in a module of its own that `run` imports.
if TYPE_CHECKING:
    from jobs.context import JobContext


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
    lines = [f"{number},{pi!r}\\n" for number, pi in enumerate(sums, 1)]
    table.write_text("".join(["round,pi\\n", *lines]))
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
'''

_TEST: Final = '''\
"""The kind `KIND`, called as a function of a context and params."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs import JOBS
IMPORTS

SMALL = Params(rounds=6, terms=10, checkpoint_every=2)


def test_start_can_run_it() -> None:
    assert JOBS["KIND"].run is run


def test_the_result_is_what_it_should_be(tmp_path: Path) -> None:
    result = run(JobContext(tmp_path), Params(rounds=2, terms=10_000))
    assert isinstance(result, dict)
    assert result["pi"] == pytest.approx(math.pi, abs=1e-4)


def test_each_round_is_progress(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run(JobContext(tmp_path, emit=events.append), SMALL)
    steps = [(event["step"], event["total"]) for event in events if event["event"] == "progress"]
    assert steps == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_the_table_is_offered_for_download(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run(JobContext(tmp_path, emit=events.append), SMALL)
    assert [event["path"] for event in events if event["event"] == "artifact"] == ["pi.csv"]
    assert len((tmp_path / "outputs" / "pi.csv").read_text().splitlines()) == 1 + 6


@pytest.mark.parametrize("round_number", [1, 3, 5])
def test_stopped_and_resumed_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, round_number: int
) -> None:
    stop = threading.Event()
    events: list[dict[str, Any]] = []

    def stop_in_that_round(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "progress" and event["step"] == round_number:
            stop.set()

    first = JobContext(tmp_path / "1", emit=stop_in_that_round, stop=stop)
    with pytest.raises(JobStopped):
        run(first, SMALL)
    sealed = [event["path"] for event in events if event["event"] == "checkpoint"][-1]
    saved = tmp_path / "1" / sealed / "sums.json"

    resumed = run(JobContext(tmp_path / "2", resume_from=saved), SMALL)
    assert resumed == run(JobContext(tmp_path / "undisturbed"), SMALL)
    table = Path("outputs", "pi.csv")
    assert (tmp_path / "2" / table).read_bytes() == (tmp_path / "undisturbed" / table).read_bytes()


def test_params_are_limited_described_and_closed() -> None:
    with pytest.raises(ValidationError):
        Params(rounds=0)
    with pytest.raises(ValidationError):
        Params.model_validate({"round": 3})
    fields = Params.model_json_schema()["properties"].values()
    assert all(field["description"] for field in fields)
'''
