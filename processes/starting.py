"""One delivery of `start`: create the process, join it, follow it elsewhere, or take it over.

`decide_delivery` decides; this module reads, writes and waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

from attempts.run import ProcessRun, StopReason
from inputs.sources import shown
from processes.lookup import FOLLOW_SECONDS, ProcessLookup
from processes.runs import Runs
from processes.settling import mend_index, settle_abandoned
from records.delivery import (
    Answer,
    Claim,
    Follow,
    GiveUp,
    ProcessExists,
    Start,
    decide_delivery,
    takeover_reason,
)
from records.keys import record_key
from records.lease import Lease, Leases, LeaseWatch
from records.notes import leave_platform_note, read_note_if_readable
from records.reading import UnknownProcess, decode_record, present, read_record
from records.record import GivenInput, Record, clock_of, new_record
from records.view import Snapshot
from storage import ObjectChanged, ObjectExists, ObjectNotFound, StorageUnavailable, Stored
from utils import WorkerError

log = logging.getLogger(__name__)


class WorkerBusy(WorkerError):
    """No slot is free and the caller did not want to wait."""

    code = "worker_busy"
    retryable = True


class Here(NamedTuple):
    """An attempt at the process runs on this worker."""

    run: ProcessRun


class Elsewhere(NamedTuple):
    """Another worker is at work on the process."""

    snapshot: Snapshot


class Ended(NamedTuple):
    """The process has ended, and this end is the answer."""

    snapshot: Snapshot


class Changed(NamedTuple):
    """Another worker wrote the record first: read it again."""


Outcome = Here | Elsewhere | Ended | Changed


class Delivery:
    """One delivery on its way: its start, the writer it signs as, whether RunPod cancelled it."""

    def __init__(self, start: Start, leases: Leases, runs: Runs, lookup: ProcessLookup) -> None:
        self._start = start
        self._leases = leases
        self._store = leases.store
        self._settings = leases.settings
        self._runs = runs
        self._lookup = lookup
        self._watch = LeaseWatch(leases.settings)
        self._writer = leases.new_writer()
        #: The record that this delivery tried to create; a second try sends the same bytes.
        self._first: Record | None = None
        #: It has seen the process alive, so the next end that it sees is its answer.
        self._followed = False
        #: Set when RunPod cancels the job of this delivery.
        self.called_off = asyncio.Event()

    async def until_begun(self) -> Snapshot:
        """Begin or join the process and return at once."""
        match await self._take():
            case Here():
                return await self._lookup.get(self._start.process_id)
            case Elsewhere(snapshot) | Ended(snapshot):
                return snapshot

    async def until_ended(self) -> Snapshot:
        """See the process to its end, on whichever worker it runs."""
        while True:
            match await self._take():
                case Ended(snapshot):
                    return snapshot
                case Elsewhere(snapshot):
                    await _first(self.called_off.wait(), asyncio.sleep(FOLLOW_SECONDS))
                    if self.called_off.is_set():
                        await self._call_off_elsewhere(snapshot.record)
                        return snapshot
                case Here(run):
                    if ended := await self._see_through(run):
                        return ended

    async def _see_through(self, run: ProcessRun) -> Snapshot | None:
        """The end of an attempt that runs here; None if another worker took the process over."""
        await _first(self.called_off.wait(), asyncio.wait([run.task]))
        if self.called_off.is_set():
            if not self._owns(run.lease.record):
                return await self._lookup.get(run.process_id)
            run.stop(StopReason.PLATFORM)
        await asyncio.wait([run.task])
        if run.lease.lost.is_set():
            self._writer = self._leases.new_writer()  # another claim needs another name
            return None
        return Snapshot(run.lease.record, "memory", run.lease.age_seconds)

    async def _call_off_elsewhere(self, record: Record) -> None:
        """Leave a note: the job runs on a worker that RunPod considers lost."""
        if self._owns(record):
            await leave_platform_note(self._store, record)

    def _owns(self, record: Record) -> bool:
        """Whether `record` belongs to the RunPod job of this delivery."""
        return record.runpod_job_id == self._start.runpod_job_id

    # ---- one look at the process

    async def _take(self) -> Here | Elsewhere | Ended:
        """Look until the record holds still, and wait for a store that does not answer.

        A redelivered job must not fail because of a short outage.
        """
        began = time.monotonic()
        while True:
            try:
                outcome = await self._look()
            except StorageUnavailable:
                self._watch.saw_nothing()
                waited = time.monotonic() - began
                if waited > self._settings.store_patience_seconds or self.called_off.is_set():
                    raise
                await _first(self.called_off.wait(), asyncio.sleep(1))
            else:
                if not isinstance(outcome, Changed):
                    return outcome

    async def _look(self) -> Outcome:
        start = self._start
        if run := await self._run_here():
            if run.lease.record.request_hash != start.request_hash:
                raise ProcessExists(f"process {start.process_id} was started with another request")
            return Here(run)
        if start.reject_when_busy and self._runs.busy and not await self._exists():
            raise WorkerBusy("every slot of this worker is taken; try again, or leave out on_busy")
        if self._first is None:
            self._first = self._first_record()
            try:
                with self._runs.beginning():
                    return self._hold(await self._leases.create(self._first))
            except ObjectExists:
                pass
        return await self._look_at_record()

    async def _run_here(self) -> ProcessRun | None:
        run = self._runs.get(self._start.process_id)
        if run and run.lease.record.released:  # it has ended and only clears up
            await asyncio.wait([run.task])
            run = self._runs.get(self._start.process_id)
        return run

    async def _exists(self) -> bool:
        try:
            await read_record(self._store, self._start.process_id)
        except UnknownProcess:
            return False
        return True

    async def _look_at_record(self) -> Outcome:
        process_id = self._start.process_id
        try:
            stored = await self._store.get(record_key(process_id))
        except ObjectNotFound:
            self._first = None  # it was removed just now: create it
            return Changed()
        record = decode_record(process_id, stored.data)
        if record.deleted:
            return await self._begin_anew(record, stored)
        if record.writer == self._writer and not record.released:
            # Our own write, whose answer was lost.
            clock = clock_of(record, stored.age_seconds, self._leases.clock)
            return self._hold(self._leases.resume(record, stored.version, clock))
        return await self._act_on(record, stored)

    async def _act_on(self, record: Record, stored: Stored) -> Outcome:
        decision = decide_delivery(
            record,
            request_hash=self._start.request_hash,
            lease_expired=self._watch.saw(stored.version, stored.age_seconds),
            max_attempts=self._settings.max_attempts,
            followed=self._followed,
        )
        match decision:
            case Answer():
                await mend_index(self._store, record)
                return Ended(Snapshot(record, "storage", stored.age_seconds))
            case Follow():
                self._followed = True
                return Elsewhere(Snapshot(record, "storage", stored.age_seconds))
            case Claim(reason):
                return await self._claim(record, stored, reason)
            case GiveUp(failure):
                settled = await settle_abandoned(
                    self._leases, record, stored, lambda r, now: r.failed(now, failure)
                )
                return Ended(settled) if settled else Changed()

    # ---- taking the process

    def _first_record(self) -> Record:
        start = self._start
        known = self._leases.redactor.knowing(start.secrets)
        return new_record(
            process_id=start.process_id,
            kind=start.kind,
            params=start.shown_params,
            request_hash=start.request_hash,
            writer=self._writer,
            now=self._leases.clock(),
            runpod_job_id=start.runpod_job_id,
            labels=start.labels,
            timeout_seconds=start.timeout_seconds,
            inputs={
                name: GivenInput(
                    source=known.text(shown(each.source)), sha256=each.sha256, unpack=each.unpack
                )
                for name, each in start.inputs.items()
            },
        )

    async def _begin_anew(self, erased: Record, stored: Stored) -> Outcome:
        """Use the id of a deleted process again.

        Raises:
            UnknownProcess: this delivery has followed the process that was deleted. No caller
                asked for it again.
        """
        if self._followed:
            present(erased)
        note = await read_note_if_readable(self._store, erased.process_id)
        first = self._first_record().after(erased, settled_note=note.version if note else None)
        try:
            clock = self._leases.clock
            lease = await self._leases.claim(first, stored.version, clock)
        except ObjectChanged:
            return Changed()
        return self._hold(lease)

    async def _claim(self, record: Record, stored: Stored, reason: str) -> Outcome:
        """Take the process over, or end it if a caller has cancelled it."""
        # A caller's cancel outlives its worker, but not an end that came first. RunPod's cancel
        # ends with the job that it stopped: this delivery is of another job, or a retry.
        note = await read_note_if_readable(self._store, record.process_id)
        settled = note is not None and (record.terminal or note.by_platform)
        if note and not settled and note.version != record.settled_note:
            ended = await settle_abandoned(  # no child for it, not even for a moment
                self._leases,
                record,
                stored,
                lambda r, now: r.cancelled(now, reason=StopReason.CANCEL),
                cancelled_seconds_ago=note.age_seconds,
            )
            return Ended(ended) if ended else Changed()
        clock = clock_of(record, stored.age_seconds, self._leases.clock)
        claimed = record.claimed(
            self._writer,
            clock(),
            reason=reason,
            settled_note=note.version if note and settled else None,
            runpod_job_id=self._start.runpod_job_id,
        )
        try:
            lease = await self._leases.claim(claimed, stored.version, clock)
        except ObjectChanged:
            return Changed()
        log.info("process %s: attempt %d begins: %s", record.process_id, claimed.attempt, reason)
        self._leases.meter.took_over(takeover_reason(record))
        return self._hold(lease)

    def _hold(self, lease: Lease) -> Here:
        self._followed = True
        run = self._runs.begin(lease, self._start)
        if self.called_off.is_set():  # while the record was on its way: start no child at all
            run.stop(StopReason.PLATFORM)
        return Here(run)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when the first of these is done; the others are cancelled."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
