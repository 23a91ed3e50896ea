"""Every process that does not come along says why, in one typed reason with a next step."""

from datetime import UTC, datetime, timedelta

import pytest

from child.verdict import Failure
from records.record import ProgressSeen, Trouble, Writer, new_record
from records.view import Snapshot
from records.why import why
from tests.crowd import on_every_store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRITER = Writer(worker_id="w1", nonce="n")


def record():
    return new_record(
        process_id="p", kind="sleep", params={}, request_hash="", writer=WRITER, now=NOW
    )


def reason(record, age=1.0, source="storage", position=None):
    snapshot = Snapshot(record, source, age, queue_position=position)
    found = why(snapshot, lease_seconds=30, stall_seconds=600)
    assert found is None or found.next_step
    return found and found.code


def test_one_that_waits_for_a_slot_says_so_and_where_in_the_line():
    snapshot = Snapshot(record(), "memory", 1.0, queue_position=3)
    found = why(snapshot, lease_seconds=30, stall_seconds=600)
    assert found.code == "no_slot"
    assert "number 3" in found.message


def test_one_whose_inputs_travel_waits_for_input():
    assert reason(record().with_phase("inputs", NOW)) == "waiting_for_input"


def test_one_that_runs_well_has_no_reason():
    assert reason(record().running(NOW).with_phase("running", NOW)) is None


def test_one_that_completed_or_was_cancelled_has_no_reason():
    assert reason(record().running(NOW).completed(NOW, None)) is None
    assert reason(record().cancelled(NOW, reason="cancelled by a caller")) is None


def test_one_whose_worker_is_lost_says_which():
    found = why(
        Snapshot(record().running(NOW), "storage", 31.0), lease_seconds=30, stall_seconds=600
    )
    assert found.code == "worker_lost"
    assert "w1" in found.message


@pytest.mark.parametrize("live", [record(), record().running(NOW)], ids=["queued", "running"])
def test_one_whose_age_is_unknown_says_so_in_words(live):
    found = why(Snapshot(live, "storage", None), lease_seconds=30, stall_seconds=600)
    assert found.code == "heartbeat_unknown"
    assert "it is unknown when worker w1 wrote last" in found.message


def test_one_that_has_ended_needs_no_age():
    assert reason(record().running(NOW).completed(NOW, None), age=None) is None


def test_one_whose_worker_was_shut_down_will_be_delivered_again():
    assert reason(record().running(NOW).interrupted(NOW, reason="drain")) == "worker_stopped"


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("storage_unavailable", "503 SlowDown", "store_throttled"),
        ("storage_unavailable", "did not answer within 9 s", "store_away"),
        ("storage_misconfigured", "the access key is unknown", "store_misconfigured"),
    ],
)
def test_one_whose_store_takes_nothing_says_what_the_store_said(code, message, expected):
    trouble = Trouble(code=code, message=message)
    assert reason(record().running(NOW).with_trouble(trouble)) == expected


def test_trouble_ends_with_the_process():
    ended = (
        record().running(NOW).with_trouble(Trouble(code="x", message="503")).completed(NOW, None)
    )
    assert ended.trouble is None


@pytest.mark.parametrize("phase", ["preparing", "upload"])
def test_one_that_is_busy_with_something_else_than_its_job_says_with_what(phase):
    assert reason(record().running(NOW).with_phase(phase, NOW)) is not None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("host_out_of_memory", "host_memory"),
        ("cuda_out_of_memory", "cuda_memory"),
        ("timed_out", "timeout"),
        ("stopped_by_platform", "platform_stop"),
        ("input_mismatch", "input"),
        ("upload_failed", "store"),
        ("worker_disk", "worker_disk"),
        ("too_many_attempts", "too_many_attempts"),
        ("job_error", "job_error"),
        ("a_code_of_the_jobs_own", "job_error"),
    ],
)
def test_a_failure_has_a_reason_to_act_upon(code, expected):
    failed = record().running(NOW).failed(NOW, Failure(code=code, message="it broke"))
    assert reason(failed) == expected


# ---- no progress


def running_with(progress, written_after):
    updated = record().running(NOW).with_phase("running", NOW).with_progress(progress)
    return updated.written(NOW + timedelta(seconds=written_after))


def test_no_progress_is_flagged_by_whoever_reads_the_record():
    """The owner rewrites it all along; `at` says when the step last changed."""
    stuck = ProgressSeen(step=5, at=NOW)
    assert reason(running_with(stuck, written_after=590), age=5) is None
    assert reason(running_with(stuck, written_after=590), age=11) == "no_progress"


def test_a_job_that_never_reported_is_flagged_from_its_start_on():
    assert reason(running_with(None, written_after=601)) == "no_progress"


def test_what_was_set_up_before_the_job_began_is_no_time_without_progress():
    """An hour of fetching weights, and the job has just begun."""
    hour = NOW + timedelta(hours=1)
    begun = record().running(NOW).with_phase("preparing", NOW).with_phase("running", hour)
    assert reason(begun.written(hour)) is None


def test_a_job_that_makes_progress_is_not_flagged():
    fresh = ProgressSeen(step=5, at=NOW + timedelta(seconds=9000))
    assert reason(running_with(fresh, written_after=9001)) is None


# ---- in real processes


@on_every_store
async def test_queued_and_stalled_processes_say_why_to_owner_and_to_others(crowd):
    owner, other = crowd.worker(stall_seconds=0.5), crowd.worker(stall_seconds=0.5)
    task = await owner.running("p", seconds=60, steps=1)  # a single step: no progress meanwhile
    owner.starts("q")
    for worker in (owner, other):
        await worker.until("q", lambda view: view["why"]["code"] == "no_slot")
        await worker.until("p", lambda v: v["why"] and v["why"]["code"] == "no_progress")
    assert (await owner("health"))["no_progress"] == ["p"]
    assert (await other("health"))["no_progress"] == []
    for process_id in ("q", "p"):
        await other("cancel", process_id=process_id)
    assert (await task)["why"] is None


@on_every_store
async def test_a_process_whose_store_takes_nothing_says_so_while_it_goes_on(crowd):
    worker = crowd.worker()
    task = await worker.running("p", seconds=3, steps=30)
    worker.store.away = True
    view = await worker.until("p", lambda view: view["why"])
    assert view["why"]["code"] == "store_away"
    assert view["status"] == "running"
    worker.store.away = False
    await worker.until("p", lambda view: view["why"] is None)
    assert (await task)["status"] == "completed"


@on_every_store
async def test_an_upload_that_the_store_refuses_is_said_to_other_workers(crowd):
    """The record gets through, the files do not: the reason is in the record."""
    owner, other = crowd.worker(), crowd.worker()
    owner.store.fail("upload", nth=None)
    task = owner.starts("p", artifacts=1)
    view = await other.until("p", lambda view: view["why"] and view["why"]["code"] != "no_slot")
    assert view["why"]["code"] == "store_away"
    owner.store.heal()
    assert (await task)["status"] == "completed"
