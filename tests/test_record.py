"""The record by itself: what may become of it, and what callers see. Nothing here does I/O."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel, SecretStr

from api.parsing import parse_params
from child.events import Progress
from child.verdict import Failure
from jobs import JOBS, Job
from records.delivery import (
    Answer,
    Claim,
    Follow,
    GiveUp,
    ProcessExists,
    Start,
    decide_delivery,
    hash_request,
)
from records.record import Checkpoint, ProgressSeen, Record, Writer, clock_of, new_record
from records.view import Snapshot, view

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
ME, YOU = Writer(worker_id="me", nonce="1"), Writer(worker_id="you", nonce="2")
BROKE = Failure(code="job_error", message="it broke")


def queued():
    return new_record(
        process_id="p",
        kind="sleep",
        params={"steps": 2},
        request_hash="h",
        writer=ME,
        now=NOW,
        runpod_job_id="job",
        labels={"user": "u"},
    )


def running():
    return queued().running(NOW)


def gave_up():
    return running().failed(NOW, Failure(code="too_many_attempts", message="enough"))


#: A record in every state that it can be in.
STATES = {
    "queued": queued(),
    "running": running(),
    "interrupted": running().interrupted(NOW, reason="drain"),
    "completed": running().completed(NOW, {"loss": 0.5}),
    "failed": running().failed(NOW, BROKE),
    "gave up": gave_up(),
    "cancelled": running().cancelled(NOW, reason="a caller"),
    "stopped by the platform": running().stopped_by_platform(NOW),
}
ENDED = {name: record for name, record in STATES.items() if record.terminal}


# ---- transitions


def test_a_new_record_is_the_first_attempt_and_the_first_revision():
    record = queued()
    assert (record.status, record.attempt, record.revision) == ("queued", 1, 1)
    assert record.created_at == record.updated_at == NOW
    assert [entry.status for entry in record.history] == ["queued"]


def test_every_status_change_is_in_the_history_with_who_when_and_why():
    entry = running().failed(NOW, BROKE).history[-1]
    assert (entry.status, entry.at, entry.worker_id, entry.attempt, entry.reason) == (
        "failed",
        NOW,
        "me",
        1,
        "job_error",
    )


def test_every_write_is_one_revision_on():
    assert running().written(NOW).revision == 2
    assert running().written(NOW).written(NOW).revision == 3


@pytest.mark.parametrize("record", ENDED.values(), ids=ENDED.keys())
def test_an_end_is_left_only_by_a_new_attempt(record):
    for change in (
        lambda r: r.running(NOW),
        lambda r: r.completed(NOW, None),
        lambda r: r.failed(NOW, BROKE),
        lambda r: r.cancelled(NOW, reason=""),
        lambda r: r.interrupted(NOW, reason=""),
        lambda r: r.stopped_by_platform(NOW),
    ):
        with pytest.raises(AssertionError):
            change(record)
    assert record.claimed(YOU, NOW, reason="again").status == "queued"


def test_a_new_attempt_starts_afresh_but_keeps_what_it_resumes_from():
    checkpoint = Checkpoint(attempt=1, seq=3, files=())
    ended = running().with_checkpoint(checkpoint).with_progress(ProgressSeen(step=7))
    claimed = ended.failed(NOW, BROKE).claimed(YOU, NOW, reason="again")
    assert (claimed.attempt, claimed.writer, claimed.checkpoints) == (2, YOU, (checkpoint,))
    assert claimed.progress is claimed.failure is claimed.started_at is claimed.finished_at is None
    assert claimed.created_at == NOW
    assert [entry.attempt for entry in claimed.history] == [1, 1, 1, 2]


def test_a_new_attempt_says_what_it_resumed_from():
    record = queued().with_checkpoint(Checkpoint(attempt=1, seq=3, files=())).running(NOW)
    assert record.history[-1].reason == "resumed from checkpoint 3"


def test_of_checkpoints_the_last_two_are_remembered():
    record = running()
    for seq in (1, 2, 3):
        record = record.with_checkpoint(Checkpoint(attempt=1, seq=seq, files=()))
    assert [checkpoint.seq for checkpoint in record.checkpoints] == [2, 3]


def test_timings_are_kept_for_each_attempt():
    record = queued().with_timing("queued", 1.23456).claimed(YOU, NOW, reason="")
    assert record.with_timing("queued", 2).timings == {1: {"queued": 1.235}, 2: {"queued": 2}}


def test_whoever_settles_a_process_does_it_in_a_name_of_its_own():
    """The old owner must not take the end for its own write."""
    settled = running().settled_by(YOU).cancelled(NOW, reason="owner gone")
    assert settled.writer == YOU
    assert settled.history[-1].worker_id == "you"
    assert settled.attempt == 1


@pytest.mark.parametrize("record", STATES.values(), ids=STATES.keys())
def test_a_record_survives_the_store(record):
    assert Record.model_validate_json(record.encode()) == record


def test_a_record_of_a_later_version_can_be_read():
    data = queued().encode().replace(b'"kind":', b'"not_yet_invented":[1],"kind":', 1)
    assert Record.model_validate_json(data) == queued()


@pytest.mark.parametrize("record", STATES.values(), ids=STATES.keys())
def test_every_time_is_utc_and_says_so(record):
    """Trap 32."""
    shown = view(Snapshot(record, "storage", 0), lease_seconds=30)
    for name in ("created_at", "started_at", "updated_at", "finished_at"):
        assert shown[name] is None or shown[name].endswith("Z")


# ---- one clock per process


def test_a_worker_tells_the_time_of_a_process_as_its_first_worker_did():
    """That one's clock was an hour ahead; it wrote ten seconds ago."""
    record = queued().written(NOW + timedelta(hours=1))
    clock = clock_of(record, 10, lambda: NOW)
    assert clock() == NOW + timedelta(hours=1, seconds=10)


@pytest.mark.parametrize("wrong_by", [timedelta(hours=1), timedelta(hours=-1)])
def test_without_an_age_no_time_comes_before_the_last_one(wrong_by):
    """The store did not tell how long ago the record was written."""
    record = queued().written(NOW + wrong_by)
    assert clock_of(record, None, lambda: NOW)() == max(NOW, record.updated_at)


# ---- what a delivery does


@pytest.mark.parametrize(
    ("name", "lease_expired", "followed", "expected"),
    [
        ("queued", False, False, Follow),
        ("running", False, False, Follow),
        ("running", False, True, Follow),
        ("queued", True, False, Claim),
        ("running", True, False, Claim),
        ("running", True, True, Claim),
        ("interrupted", False, False, Claim),
        ("interrupted", True, True, Claim),
        ("completed", False, False, Answer),
        ("completed", True, False, Answer),
        ("cancelled", False, False, Answer),
        ("cancelled", True, False, Answer),
        ("gave up", False, False, Answer),
        ("gave up", True, False, Answer),
        ("failed", False, False, Claim),
        ("failed", True, False, Claim),
        ("failed", False, True, Answer),
        ("stopped by the platform", False, False, Claim),
        ("stopped by the platform", True, True, Answer),
    ],
)
def test_what_a_delivery_does_about_a_process(name, lease_expired, followed, expected):
    decision = decide_delivery(
        STATES[name],
        request_hash="h",
        lease_expired=lease_expired,
        followed=followed,
        max_attempts=5,
    )
    assert isinstance(decision, expected)


@pytest.mark.parametrize("record", STATES.values(), ids=STATES.keys())
def test_another_request_is_refused_whatever_the_state(record):
    with pytest.raises(ProcessExists):
        decide_delivery(record, request_hash="other", lease_expired=True, max_attempts=5)


@pytest.mark.parametrize("name", STATES)
def test_resumable_is_what_a_new_delivery_would_resume(name):
    record = STATES[name]
    decision = decide_delivery(record, request_hash="h", lease_expired=False, max_attempts=5)
    assert record.resumable == isinstance(decision, Claim)


def attempts(count):
    record = running()
    for _ in range(count - 1):
        record = record.claimed(YOU, NOW, reason="lost").running(NOW)
    return record


def test_a_process_that_began_often_enough_is_given_up():
    decide = {"request_hash": "h", "lease_expired": True, "max_attempts": 3}
    assert isinstance(decide_delivery(attempts(2), **decide), Claim)
    decision = decide_delivery(attempts(3), **decide)
    assert isinstance(decision, GiveUp)
    assert decision.failure.code == "too_many_attempts"


def test_an_attempt_that_a_drain_called_off_does_not_count():
    """Scaling down is the platform's doing; a long job must survive any number of it."""
    record = running()
    for _ in range(5):
        record = record.interrupted(NOW, reason="drain").claimed(ME, NOW, reason="").running(NOW)
    assert (record.attempt, record.runs) == (6, 1)


def test_only_attempts_that_got_as_far_as_a_child_count():
    """A worker that is drained while a process waits for its slot has tried nothing."""
    record = queued()
    for _ in range(10):
        record = record.claimed(YOU, NOW, reason="drained")
    assert record.runs == 0


# ---- the request


def test_the_same_request_has_the_same_hash_in_whatever_order():
    one = hash_request("p", {"kind": "k", "params": {"a": 1, "b": 2}})
    two = hash_request("p", {"params": {"b": 2, "a": 1}, "kind": "k"})
    assert one == two
    assert one != hash_request("p", {"kind": "k", "params": {"a": 1, "b": 3}})


def test_equal_requests_of_two_processes_cannot_be_told_to_be_equal():
    """The hash is readable by whoever may read the record, and params may hold a short secret."""
    assert hash_request("p", {"pin": 1234}) != hash_request("q", {"pin": 1234})


def test_secrets_are_masked_before_they_can_be_stored(monkeypatch):
    """Trap 26."""

    class Params(BaseModel):
        token: SecretStr

    monkeypatch.setitem(JOBS, "secretive", Job(Params, lambda _context, _params: None))
    given = {"token": "hunter2"}
    start = Start("p", "secretive", given, parse_params("secretive", given), {})
    record = new_record(
        process_id="p",
        kind=start.kind,
        params=start.shown_params,
        request_hash=start.request_hash,
        writer=ME,
        now=NOW,
    )
    assert b"hunter2" not in record.encode()
    assert start.params["token"] == "hunter2"


# ---- progress


def progress(step, total=100):
    return Progress(step=step, total=total, message="", metrics={})


def test_the_eta_carries_this_attempts_pace_on():
    """Resumed at step 50; 10 steps took 20 s; 40 are left."""
    seen = ProgressSeen.of(progress(60), first_step=50, seconds=20)
    assert (seen.percent, seen.eta_seconds) == (60, 80)


@pytest.mark.parametrize(
    ("seen", "first"), [(progress(50), 50), (progress(10, None), 0), (progress(3, 0), 0)]
)
def test_without_a_pace_or_a_total_there_is_no_eta(seen, first):
    assert ProgressSeen.of(seen, first_step=first, seconds=5).eta_seconds is None


def test_an_eta_is_never_negative():
    assert ProgressSeen.of(progress(120), first_step=0, seconds=5).eta_seconds == 0


# ---- what callers see


def shown(record, source="storage", age=0.0, **changes):
    return view(Snapshot(record, source, age, **changes), lease_seconds=30)


def test_a_view_has_all_that_was_promised():
    fields = (
        "process_id kind status revision attempt worker_id created_at started_at updated_at "
        "finished_at progress queue_position cancel_requested failure result artifacts "
        "heartbeat_age_seconds source stale labels"
    )
    assert set(fields.split()) <= shown(running()).keys()


def test_a_view_shows_no_params():
    assert "params" not in shown(running())


def test_a_process_that_nobody_wrote_for_a_lease_is_shown_as_interrupted():
    """Trap 6."""
    assert shown(running(), age=29)["status"] == "running"
    lost = shown(running(), age=31)
    assert (lost["status"], lost["resumable"]) == ("interrupted", True)


def test_the_owner_knows_better_than_the_age_of_its_last_write():
    assert shown(running(), source="memory", age=1000)["status"] == "running"


def test_what_is_stale_is_not_called_interrupted():
    """Nobody can tell: the store cannot be asked."""
    assert shown(running(), source="cache", age=1000, stale=True)["status"] == "running"


@pytest.mark.parametrize("source", ["storage", "cache"])
def test_a_process_whose_age_is_unknown_is_not_called_interrupted(source):
    seen = shown(running(), source=source, age=None)
    assert (seen["status"], seen["heartbeat_age_seconds"]) == ("running", None)


@pytest.mark.parametrize("record", ENDED.values(), ids=ENDED.keys())
def test_what_has_ended_has_no_heartbeat(record):
    assert shown(record, age=1000)["status"] == record.status
    assert shown(record, age=1000)["heartbeat_age_seconds"] is None


def test_a_view_is_a_copy_that_its_receiver_may_change():
    """Trap 7."""
    record = running().completed(NOW, {"losses": [1, 2]})
    reply = shown(record)
    reply["result"]["losses"].append(3)
    reply["labels"]["user"] = "other"
    assert record.result == {"losses": [1, 2]}
    assert record.labels == {"user": "u"}
