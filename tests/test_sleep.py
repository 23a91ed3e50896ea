"""The kind `sleep`, called as what it is: a function of a context and params."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from child.context import JobContext, JobStopped
from jobs.sleep import Params, run


def test_each_step_is_progress(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run(JobContext(tmp_path, emit=events.append), Params(steps=3))
    assert [(event["step"], event["total"]) for event in events] == [(1, 3), (2, 3), (3, 3)]


def test_a_run_from_the_start_does_every_step(tmp_path: Path) -> None:
    result = run(JobContext(tmp_path), Params(steps=3))
    assert result == {"steps_run_by_this_attempt": 3, "resumed_from": None}


def test_an_attempt_does_only_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    first = JobContext(tmp_path / "1", emit=events.append)
    with pytest.raises(RuntimeError, match="step 6"):
        run(first, Params(steps=8, checkpoint_every=2, fail_at=6))
    checkpoints = [event["path"] for event in events if event["event"] == "checkpoint"]
    assert checkpoints == ["sealed/000001", "sealed/000002"]

    saved = tmp_path / "1" / checkpoints[-1] / "done.txt"
    result = run(JobContext(tmp_path / "2", resume_from=saved), Params(steps=8))
    assert result == {"steps_run_by_this_attempt": 4, "resumed_from": 4}


def test_a_stop_is_noticed_within_a_step_and_saves_what_is_done(tmp_path: Path) -> None:
    saved = tmp_path / "done.txt"
    saved.write_text("5")
    stop = threading.Event()
    context = JobContext(tmp_path, stop=stop, resume_from=saved)
    stop.set()
    with pytest.raises(JobStopped):
        run(context, Params(steps=10, seconds=36_000))
    assert (tmp_path / "sealed" / "000001" / "done.txt").read_text() == "5"


def test_artifacts_are_offered_as_they_are_written(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    run(JobContext(tmp_path, emit=events.append), Params(artifacts=2, artifact_bytes=5))
    offered = [event["path"] for event in events if event["event"] == "artifact"]
    assert offered == ["artifact-1.bin", "artifact-2.bin"]
    assert [(tmp_path / "outputs" / name).stat().st_size for name in offered] == [5, 5]


def test_it_can_exit_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(JobContext(tmp_path), Params(exit_code=3))
    assert ended.value.code == 3


def test_params_are_limited_described_and_closed() -> None:
    with pytest.raises(ValidationError):
        Params(steps=0)
    with pytest.raises(ValidationError):
        Params.model_validate({"step": 3})
    fields = Params.model_json_schema()["properties"].values()
    assert all(field["description"] for field in fields)
