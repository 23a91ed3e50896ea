"""From views to events: nothing that is older than what the caller has seen."""

from __future__ import annotations

import pytest

from podjobs.log_tail import lines_after
from podjobs.models import Artifacts, Progress, View
from podjobs.tracking import ArtifactsStored, Logged, Progressed, StatusChanged, Tracker


def view(revision: int, step: int | None = None, **fields: object) -> View:
    progress = None if step is None else Progress(step=step, total=100)
    known = {"process_id": "p1", "status": "running", "phase": "running", "attempt": 1}
    return View.model_validate({**known, "revision": revision, "progress": progress, **fields})


def types(events: list[object]) -> list[type]:
    return [type(event) for event in events]


def test_a_status_is_told_once() -> None:
    tracker = Tracker()
    assert types(tracker.accept(view(1))) == [StatusChanged]
    assert tracker.accept(view(2)) == []
    assert types(tracker.accept(view(3, status="completed"))) == [StatusChanged]


@pytest.mark.parametrize(
    "late", [view(1, 3), view(2, 4), view(0, status="queued")], ids=["record", "memory", "queue"]
)
def test_an_older_view_changes_nothing(late: View) -> None:
    tracker = Tracker()
    tracker.accept(view(2, 5))
    assert tracker.accept(late) == []
    assert tracker.view == view(2, 5)


def test_steps_that_an_attempt_repeats_are_not_told() -> None:
    tracker = Tracker()
    tracker.accept(view(2, 12))
    resumed = tracker.accept(view(4, 10, attempt=2))
    assert types(resumed) == [StatusChanged]
    assert types(tracker.accept(view(5, 13, attempt=2))) == [Progressed]


def test_bytes_of_inputs_and_steps_are_counted_apart() -> None:
    tracker = Tracker()
    [_, fetched] = tracker.accept(view(1, 5_000_000, phase="inputs"))
    [_, stepped] = tracker.accept(view(2, 1))
    assert isinstance(fetched, Progressed)
    assert isinstance(stepped, Progressed)
    assert (fetched.unit, stepped.unit) == ("bytes", "steps")


def test_a_resumed_attempt_may_begin_with_fewer_files() -> None:
    tracker = Tracker()
    tracker.accept(view(1, artifacts=Artifacts(count=3, total_bytes=30)))
    assert types(tracker.accept(view(2, attempt=2))) == [StatusChanged]
    stored = tracker.accept(view(3, attempt=2, artifacts=Artifacts(count=1, total_bytes=10)))
    assert stored == [ArtifactsStored(1, 10)]


def test_lines_behind_a_link_are_told_once_and_gaps_are_counted() -> None:
    text = "# lines 3 to 5\nthree\nfour\nfive\n 40%|####\n"
    assert lines_after(text, 1, 0) == [
        Logged(1, 3, "three", left_out=2),
        Logged(1, 4, "four"),
        Logged(1, 5, "five"),
    ]
    assert lines_after(text, 1, 4) == [Logged(1, 5, "five")]
    assert lines_after("no worker wrote this", 1, 0) == []
