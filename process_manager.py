"""The life of processes, as one worker takes part in it: start, find, list, cancel, drain, recover.

The record in the store is the truth about a process, and it has one writer: the worker that holds
its lease (`processes.lease`), for as long as a `ProcessRun` lives here. About every other process
this worker only reads, and leaves a note beside the record when somebody wants it stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from inputs.sources import shown
from meter import Meter
from processes.cancelling import Cancelling
from processes.delivery import (
    Answer,
    Claim,
    Follow,
    GiveUp,
    ProcessExists,
    Start,
    decide_delivery,
    takeover_reason,
)  # fmt: skip
from processes.lease import Lease, LeaseWatch
from processes.load import load_of
from processes.lookup import FOLLOW_SECONDS, ProcessLookup
from processes.notes import leave_note, read_note
from processes.reading import UnknownProcess, decode_record, present, read_record
from processes.record import (
    Record,
    Snapshot,
    Writer,
    clock_of,
    new_record,
    record_key,
)
from processes.recovery import recover
from processes.removal import ProcessActive, delete_process
from processes.run import ProcessRun, StopReason
from processes.settling import mend_index, settle_abandoned
from processes.worker import new_worker
from redaction import Redactor
from settings import Settings
from storage import (
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StorageUnavailable,
    Store,
    Stored,
)  # fmt: skip
from stores.prefixes import Removed
from utils import Clock, WorkerError, new_nonce, utc_now

__all__ = ["ProcessManager", "Start", "WorkerBusy"]

log = logging.getLogger(__name__)


#: The rest of the grace period is for replies that are under way.
DRAIN_SHARE = 0.9


class WorkerBusy(WorkerError):
    """No slot is free and the caller did not want to wait."""

    code = "worker_busy"
    retryable = True


class _Delivery:
    """One delivery on its way: what it asks, whose name it writes, whether RunPod called it off."""

    def __init__(self, start: Start, worker_id: str) -> None:
        self.start = start
        self.writer = Writer(worker_id=worker_id, nonce=new_nonce())
        self.called_off = asyncio.Event()
        #: What this delivery tried to create; kept, so that a second try is the same bytes.
        self.first: Record | None = None
        #: It has seen the process alive: the next end it sees is its answer.
        self.followed = False

    def owns(self, record: Record) -> bool:
        """Whether `record` belongs to the RunPod job that this delivery is of."""
        return record.runpod_job_id == self.start.runpod_job_id

    def renew(self) -> None:
        """Another claim needs another name."""
        self.writer = Writer(worker_id=self.writer.worker_id, nonce=new_nonce())


class ProcessManager:
    """Starts processes, answers for them, stops them."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        redactor: Redactor | None = None,
        clock: Clock = utc_now,
        meter: Meter | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        #: What the parts of a process's life are handed, and the cleaner that comes after them.
        self.worker = new_worker(store, settings, redactor or Redactor(), clock, meter)
        self._runs: dict[str, ProcessRun] = {}
        self.worker.meter.watch(lambda: load_of(self.worker, self._runs))
        self.lookup = ProcessLookup(self.worker, self._runs)
        self._cancelling = Cancelling(self.worker, self.lookup, self._runs)
        #: Processes that are being created; each will want a slot.
        self._beginning = 0
        self.draining = False

    def running_and_queued(self) -> tuple[int, int]:
        """How many processes hold a slot here, and how many wait for one."""
        load = load_of(self.worker, self._runs)
        return load.running, load.queued

    # ---- start

    async def deliver(self, start: Start) -> Snapshot:
        """See a process to its end: begin it, join it, follow it or take it over.

        Cancelling this is how RunPod stops a job: the child is killed, the record says so, and
        only then does the CancelledError go on.

        Raises:
            ProcessExists: the id was started with another request.
            WorkerBusy: no slot is free and the caller did not want to wait.
            StorageUnavailable: the store stayed away; nothing was begun here.
        """
        delivery = _Delivery(start, self._settings.worker_id)
        task = asyncio.create_task(self._deliver(delivery))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            delivery.called_off.set()
            while not task.done():  # RunPod may cancel more than once
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if not task.cancelled() and task.exception():
                log.warning("a cancelled delivery of %s: %s", start.process_id, task.exception())
            raise

    async def begin(self, start: Start) -> Snapshot:
        """Begin or join a process and return at once. Only for workers that are not stopped idle.

        Raises: as `deliver`.
        """
        delivery = _Delivery(start, self._settings.worker_id)
        taken = await self._take_patiently(delivery, LeaseWatch(self._settings))
        if isinstance(taken, Snapshot):
            return taken
        return await self.lookup.get(start.process_id)

    async def _deliver(self, delivery: _Delivery) -> Snapshot:
        process_id, watch = delivery.start.process_id, LeaseWatch(self._settings)
        while True:
            taken = await self._take_patiently(delivery, watch)
            if isinstance(taken, Snapshot):
                if taken.record.released:
                    return taken
                await _first(delivery.called_off.wait(), asyncio.sleep(FOLLOW_SECONDS))
                if delivery.called_off.is_set():
                    return await self._call_off_elsewhere(taken, delivery)
                continue
            await _first(delivery.called_off.wait(), asyncio.wait([taken.task]))
            if delivery.called_off.is_set():
                if not delivery.owns(taken.lease.record):
                    return await self.lookup.get(process_id)
                taken.stop(StopReason.PLATFORM)
            await asyncio.wait([taken.task])
            if not taken.lease.lost.is_set():
                return Snapshot(taken.lease.record, "memory", taken.lease.age_seconds)
            delivery.renew()

    async def _call_off_elsewhere(self, seen: Snapshot, delivery: _Delivery) -> Snapshot:
        """RunPod told us to stop a job that still runs on a worker it holds for lost."""
        record = seen.record
        if delivery.owns(record):
            note = await read_note(self._store, record.process_id)
            if note is None or note.version == record.settled_note:  # a caller's wish is stronger
                await leave_note(
                    self._store, record.process_id, by="platform", nonce=delivery.writer.nonce
                )
        return seen

    async def _take_patiently(
        self, delivery: _Delivery, watch: LeaseWatch
    ) -> ProcessRun | Snapshot:
        """`_take`, waiting for a store that is away: a redelivered job must not fail over that."""
        began = time.monotonic()
        while True:
            try:
                return await self._take(delivery, watch)
            except StorageUnavailable:
                watch.saw_nothing()
                waited = time.monotonic() - began
                if waited > self._settings.store_patience_seconds or delivery.called_off.is_set():
                    raise
                await _first(delivery.called_off.wait(), asyncio.sleep(1))

    async def _take(self, delivery: _Delivery, watch: LeaseWatch) -> ProcessRun | Snapshot:
        """One try at a delivery: an attempt that runs here, or how things stand elsewhere."""
        start = delivery.start
        run = self._runs.get(start.process_id)
        if run and run.lease.record.released:  # it has ended and only clears up
            await asyncio.wait([run.task])
            run = self._runs.get(start.process_id)
        if run:
            if run.lease.record.request_hash != start.request_hash:
                raise ProcessExists(f"process {start.process_id} was started with another request")
            return run
        if start.reject_when_busy and self._is_busy() and not await self._exists(start.process_id):
            raise WorkerBusy("every slot of this worker is taken; try again, or leave out on_busy")
        if delivery.first is None:
            delivery.first = self._first_record(delivery)
            self._beginning += 1
            try:
                return self._hold(await Lease.create(self.worker, delivery.first), delivery)
            except ObjectExists:
                pass
            finally:
                self._beginning -= 1
        return await self._take_existing(delivery, watch)

    def _first_record(self, delivery: _Delivery) -> Record:
        start = delivery.start
        known = self.worker.redactor.knowing(start.secrets)
        return new_record(
            process_id=start.process_id, kind=start.kind, params=start.shown_params,
            request_hash=start.request_hash, writer=delivery.writer, now=self._clock(),
            runpod_job_id=start.runpod_job_id, labels=start.labels,
            timeout_seconds=start.timeout_seconds,
            inputs={name: known.text(shown(each.source)) for name, each in start.inputs.items()},
        )  # fmt: skip

    def _is_busy(self) -> bool:
        wanted = sum(run.wants_slot for run in self._runs.values()) + self._beginning
        return wanted >= self._settings.slots

    async def _exists(self, process_id: str) -> bool:
        try:
            await read_record(self._store, process_id)
        except UnknownProcess:
            return False
        return True

    async def _take_existing(self, delivery: _Delivery, watch: LeaseWatch) -> ProcessRun | Snapshot:
        start = delivery.start
        try:
            stored = await self._store.get(record_key(start.process_id))
        except ObjectNotFound:
            delivery.first = None  # it was removed just now: begin anew
            return await self._take(delivery, watch)
        record = decode_record(start.process_id, stored.data)
        if record.deleted:
            anew = await self._begin_anew(record, stored, delivery)
            return anew or await self._take(delivery, watch)
        if record.writer == delivery.writer and not record.released:
            # Our own write, whose answer was lost.
            clock = clock_of(record, stored.age_seconds, self._clock)
            return self._hold(Lease(self.worker, record, stored.version, clock), delivery)
        decision = decide_delivery(
            record,
            request_hash=start.request_hash,
            lease_expired=watch.saw(stored.version, stored.age_seconds),
            max_attempts=self._settings.max_attempts,
            followed=delivery.followed,
        )
        match decision:
            case Answer():
                await mend_index(self.worker, record)
                return Snapshot(record, "storage", stored.age_seconds)
            case Follow():
                delivery.followed = True
                return Snapshot(record, "storage", stored.age_seconds)
            case Claim(reason):
                taken = await self._claim(record, stored, reason, delivery)
                return taken or await self._take(delivery, watch)  # somebody was faster: look again
            case GiveUp(failure):
                settled = await settle_abandoned(
                    self.worker, record, stored, lambda r, now: r.failed(now, failure)
                )
                return settled or await self._take(delivery, watch)

    async def _begin_anew(
        self, erased: Record, stored: Stored, delivery: _Delivery
    ) -> ProcessRun | None:
        """Use the id of a deleted process again; None: somebody was faster.

        Raises:
            UnknownProcess: this delivery has followed the process that was deleted. Nobody asked
                for it again.
        """
        if delivery.followed:
            present(erased)
        note = await read_note(self._store, erased.process_id)
        first = self._first_record(delivery)
        first = first.after(erased, settled_note=note.version if note else None)
        try:
            lease = await Lease.claim(self.worker, first, stored.version, self._clock)
        except ObjectChanged:
            return None
        return self._hold(lease, delivery)

    async def _claim(
        self, record: Record, stored: Stored, reason: str, delivery: _Delivery
    ) -> ProcessRun | Snapshot | None:
        """Take a process over, or end it if a caller wanted that; None: somebody was faster."""
        # A caller's wish to stop a process outlives its worker, but not an end that came first.
        # RunPod's ends with the job that it stopped: this delivery is of another, or a retry.
        note = await read_note(self._store, record.process_id)
        settled = note is not None and (record.terminal or note.by_platform)
        if note and not settled and note.version != record.settled_note:
            return await settle_abandoned(  # no child for it, not even for a moment
                self.worker,
                record,
                stored,
                lambda r, now: r.cancelled(now, reason=StopReason.CANCEL),
                cancelled_seconds_ago=note.age_seconds,
            )
        clock = clock_of(record, stored.age_seconds, self._clock)
        claimed = record.claimed(
            delivery.writer, clock(), reason=reason,
            settled_note=note.version if note and settled else None,
            runpod_job_id=delivery.start.runpod_job_id,
        )  # fmt: skip
        try:
            lease = await Lease.claim(self.worker, claimed, stored.version, clock)
        except ObjectChanged:
            return None
        log.info("process %s: attempt %d begins: %s", record.process_id, claimed.attempt, reason)
        self.worker.meter.took_over(takeover_reason(record))
        return self._hold(lease, delivery)

    def _hold(self, lease: Lease, delivery: _Delivery) -> ProcessRun:
        self.worker.meter.attempt_began(lease.record.kind)
        run = ProcessRun(self.worker, lease, delivery.start)
        delivery.followed = True
        self._runs[run.process_id] = run
        run.task.add_done_callback(lambda _: self._let_go(run))
        if self.draining:
            run.stop(StopReason.DRAIN)
        if delivery.called_off.is_set():  # while the record was on its way: no child at all
            run.stop(StopReason.PLATFORM)
        return run

    def _let_go(self, run: ProcessRun) -> None:
        if self._runs.get(run.process_id) is run:  # not a later attempt's place
            del self._runs[run.process_id]

    # ---- end

    async def cancel(self, process_id: str, *, wait_seconds: float) -> Snapshot:
        """Have a process stopped, wherever it runs; returns when it ended or the wait is over.

        A process that has ended stays as it ended. One whose owner is gone is settled here.

        Raises: as `ProcessLookup.get`; the store must be there, unless this worker runs it.
        """
        return await self._cancelling.cancel(process_id, wait_seconds=wait_seconds)

    async def delete(self, process_id: str) -> Removed:
        """Remove a process that has ended, with all that it stored. There is no way back.

        Raises:
            UnknownProcess: there is none.
            ProcessActive: it has not ended.
        """
        if run := self._runs.get(process_id):
            if not run.lease.record.released:
                raise ProcessActive(f"process {process_id} runs here; `cancel` it first")
            await asyncio.wait([run.task])  # it has ended and only clears up
        return await delete_process(self.worker, process_id)

    # ---- come and go

    async def drain(self) -> None:
        """Stop every process here so that another worker can resume it. Bounded in time."""
        self.draining = True
        runs = list(self._runs.values())
        for run in runs:
            run.stop(StopReason.DRAIN)
        if runs:
            patience = self._settings.grace_seconds * DRAIN_SHARE
            await asyncio.wait([r.task for r in runs], timeout=patience)

    async def recover(self) -> None:
        """What a worker owes and should know when it starts. Never delays a request.

        Ends of processes that workers of this machine could not write before they died are
        written now, unless the process has moved on since. Recent records are read ahead.
        """
        await recover(self.worker, self.lookup)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when the first of these is done; the others are cancelled."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
