"""The protocol against everything at once: starts, duplicates, crashes, zombies, cancels, retries.

Workers here are no more than what the protocol needs of one: what it last read, and the version it
holds. The store is a dictionary that refuses a write on top of anything but the newest version.
Transitions and decisions are the real ones.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from child.verdict import Failure
from records.delivery import Answer, Claim, Follow, GiveUp, decide_delivery
from records.record import (
    STOPPED_BY_PLATFORM,
    TERMINAL,
    Checkpoint,
    ProgressSeen,
    Record,
    Status,
    Writer,
    new_record,
)

MAX_ATTEMPTS = 3
workers = st.integers(0, 3)


class Conflict(Exception):
    """Another version is there."""


class Versions:
    """A record in a store with compare-and-swap, and all that it ever was."""

    def __init__(self) -> None:
        self.all: list[Record] = []

    @property
    def version(self) -> int:
        return len(self.all)

    @property
    def record(self) -> Record:
        return Record.model_validate_json(self.all[-1].encode())

    def write(self, record: Record, on_top_of: int) -> int:
        if on_top_of != self.version:
            raise Conflict
        self.all.append(record)
        return self.version


class Held:
    """A record that a worker may write, as `records.lease` holds one: as stored and as wished."""

    def __init__(self, stored: Record, version: int) -> None:
        self.desired = self.stored = stored
        self.version = version


class Worker:
    """What one worker knows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.claims = 0
        self.held: Held | None = None
        #: What a delivery here has read and will act on, and whether it saw the process alive.
        self.seen: tuple[Record, int, bool] | None = None
        self.followed = False

    def new_name(self) -> Writer:
        self.claims += 1
        return Writer(worker_id=self.name, nonce=f"{self.name}-{self.claims}")


class Protocol(RuleBasedStateMachine):
    """Each rule is one thing that can happen next."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Versions()
        self.workers = [Worker(f"w{number}") for number in range(4)]
        self.seconds = 0

    def now(self) -> datetime:
        self.seconds += 1
        return datetime(2026, 8, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def write(self, worker: Worker, change, *, answer_lost: bool = False) -> None:
        """What a lease does: on top of what it wrote last; if that is gone, it looks again."""
        held = worker.held
        if not held.desired.released:
            held.desired = change(held.desired)
        record = held.desired.written(self.now(), revision=held.stored.revision + 1)
        try:
            version = self.store.write(record, held.version)
        except Conflict:
            self.look_again(worker)
        else:
            if not answer_lost:
                self.took(worker, record, version)

    def look_again(self, worker: Worker) -> None:
        held, found = worker.held, self.store.record
        if found.writer != held.stored.writer:
            worker.held = None  # lost: nothing more is written
            return
        done = held.desired.written(found.updated_at, revision=found.revision) == found
        self.took(worker, found, self.store.version)  # mine, and its answer was lost
        if not done:
            worker.held = held
            self.write(worker, lambda record: record)

    def took(self, worker: Worker, record: Record, version: int) -> None:
        worker.held.stored, worker.held.version = record, version
        if record.released:
            worker.held = None

    # ---- deliveries

    @rule(number=workers)
    def look(self, number):
        """A delivery reads the record. It may act on that much later."""
        worker = self.workers[number]
        if self.store.all:
            worker.seen = (self.store.record, self.store.version, worker.followed)
        else:
            first = new_record(
                process_id="p",
                kind="k",
                params={},
                request_hash="h",
                writer=worker.new_name(),
                now=self.now(),
            )
            worker.held = Held(first, self.store.write(first, 0))
            worker.followed = True

    @precondition(lambda self: any(worker.seen for worker in self.workers))
    @rule(number=workers, lease_expired=st.booleans(), answer_lost=st.booleans())
    def act(self, number, lease_expired, answer_lost):
        """It decides; whatever has happened since, the store compares."""
        worker = self.workers[number]
        if worker.seen is None:
            return
        (record, version, followed), worker.seen = worker.seen, None
        decision = decide_delivery(
            record,
            request_hash="h",
            lease_expired=lease_expired,
            max_attempts=MAX_ATTEMPTS,
            followed=followed,
        )
        match decision:
            case Answer():
                assert record.terminal
                worker.followed = False  # the next delivery here is a new one
            case Follow():
                worker.followed = True
            case Claim(reason):
                self.take(
                    worker,
                    record.claimed(worker.new_name(), self.now(), reason=reason),
                    version,
                    answer_lost=answer_lost,
                )
            case GiveUp(failure):
                ended = record.settled_by(worker.new_name()).failed(self.now(), failure)
                self.take(worker, ended, version, answer_lost=answer_lost)

    def take(self, worker: Worker, record: Record, version: int, *, answer_lost: bool) -> None:
        record = record.written(self.now())
        try:
            version = self.store.write(record, version)
        except Conflict:
            return  # somebody was faster
        worker.followed = True
        if not record.released and not answer_lost:
            worker.held = Held(record, version)

    @rule(number=workers)
    def new_delivery(self, number):
        self.workers[number].followed = False

    # ---- what an owner, or one who thinks it is, does

    def owner(self, number) -> Worker | None:
        worker = self.workers[number]
        return worker if worker.held else None

    @rule(number=workers, answer_lost=st.booleans())
    def child_starts(self, number, answer_lost):
        if (worker := self.owner(number)) and worker.held.desired.status is Status.QUEUED:
            self.write(worker, lambda r: r.running(self.now()), answer_lost=answer_lost)

    @rule(number=workers, step=st.integers(0, 9), answer_lost=st.booleans())
    def progress(self, number, step, answer_lost):
        if worker := self.owner(number):
            self.write(
                worker, lambda r: r.with_progress(ProgressSeen(step=step)), answer_lost=answer_lost
            )

    @rule(number=workers)
    def checkpoint(self, number):
        if worker := self.owner(number):
            attempt = worker.held.desired.attempt
            self.write(
                worker, lambda r: r.with_checkpoint(Checkpoint(attempt=attempt, seq=1, files=()))
            )

    @rule(
        number=workers,
        end=st.sampled_from(["completed", "failed", "cancelled", "platform", "drained"]),
        answer_lost=st.booleans(),
    )
    def finish(self, number, end, answer_lost):
        if worker := self.owner(number):
            ends = {
                "completed": lambda r: r.completed(self.now(), 1),
                "failed": lambda r: r.failed(self.now(), Failure(code="job_error", message="")),
                "cancelled": lambda r: r.cancelled(self.now(), reason="asked"),
                "platform": lambda r: r.stopped_by_platform(self.now()),
                "drained": lambda r: r.interrupted(self.now(), reason="drained"),
            }
            self.write(worker, ends[end], answer_lost=answer_lost)

    @rule(number=workers)
    def crash(self, number):
        self.workers[number] = Worker(f"w{number}'{self.seconds}")

    # ---- somebody else's cancel

    @precondition(lambda self: self.store.all)
    @rule(number=workers, lease_expired=st.booleans())
    def cancel_elsewhere(self, number, lease_expired):
        record, version = self.store.record, self.store.version
        if not record.terminal and (lease_expired or record.status is Status.INTERRUPTED):
            worker = self.workers[number]
            ended = record.settled_by(worker.new_name()).cancelled(self.now(), reason="gone")
            self.store.write(ended.written(self.now()), version)

    # ---- what must hold, whatever happened

    @invariant()
    def each_version_is_one_revision_on(self):
        revisions = [record.revision for record in self.store.all]
        assert revisions == list(range(1, len(revisions) + 1))

    @invariant()
    def attempts_only_go_up_one_at_a_time(self):
        attempts = [record.attempt for record in self.store.all]
        steps = [after - before for before, after in pairwise(attempts)]
        assert set(steps) <= {0, 1}

    @invariant()
    def an_end_is_left_only_by_a_new_attempt_and_only_if_it_may_be(self):
        for before, after in pairwise(self.store.all):
            if before.terminal:
                assert before.resumable
                assert (after.attempt, after.status) == (before.attempt + 1, Status.QUEUED)

    @invariant()
    def an_attempt_ends_at_most_once(self):
        for record in self.store.all[-1:]:
            ended = [entry.attempt for entry in record.history if entry.status in TERMINAL]
            assert len(ended) == len(set(ended))

    @invariant()
    def history_is_only_ever_added_to(self):
        for before, after in pairwise(self.store.all):
            assert after.history[: len(before.history)] == before.history

    @invariant()
    def a_writer_is_replaced_only_by_a_claim_or_an_end(self):
        """No write is accepted from somebody who has lost the process."""
        for before, after in pairwise(self.store.all):
            if before.writer != after.writer:
                assert after.attempt == before.attempt + 1 or after.terminal

    @invariant()
    def children_are_started_no_more_often_than_allowed(self):
        """A failed process is resumed by whoever asks, up to the same limit."""
        for record in self.store.all[-1:]:
            assert record.runs <= MAX_ATTEMPTS

    @invariant()
    def what_a_caller_stopped_stays_stopped(self):
        for record in self.store.all[:-1]:
            if record.status is Status.CANCELLED:
                assert record.failure is not None
                assert record.failure.code == STOPPED_BY_PLATFORM


Protocol.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestProtocol = Protocol.TestCase
