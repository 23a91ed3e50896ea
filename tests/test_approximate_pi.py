"""The kind `approximate_pi`, called as a function of a context and params."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from examples.approximate_pi import KIND, Params, run
from jobs import JobContext, JobStopped

SMALL = Params(rounds=6, terms=10, checkpoint_every=2)


def test_the_kind_is_declared() -> None:
    assert KIND.params is Params
    assert KIND.run is run


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
