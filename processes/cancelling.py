"""Cancelling a process from anywhere: by its owner, by a note, or by settling it here."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from attempts.run import StopReason
from processes.lookup import FOLLOW_SECONDS, ProcessLookup
from processes.runs import Runs
from processes.settling import settle_abandoned
from records.lease import Leases, LeaseWatch
from records.notes import leave_note
from records.reading import decode_record, present, read_stored
from records.record import Status
from records.view import Snapshot
from storage import StorageFailure


class Cancelling:
    """What a worker does about processes that are to be stopped."""

    def __init__(self, leases: Leases, lookup: ProcessLookup, runs: Runs) -> None:
        self._leases = leases
        self._store = leases.store
        self._lookup = lookup
        self._runs = runs

    async def cancel(self, process_id: str, *, wait_seconds: float) -> Snapshot:
        """As `ProcessManager.cancel`."""
        snapshot = await self._lookup.get(process_id, fresh=True)
        if snapshot.record.terminal:
            return snapshot
        if run := self._runs.get(process_id):
            run.stop(StopReason.CANCEL)
        # Also for our own: should this worker die now, whoever continues the process will see it.
        try:
            await leave_note(self._store, process_id)
        except StorageFailure:
            if run is None:
                raise
        ended = await self._await_end(process_id, wait_seconds)
        if ended.record.terminal:
            return ended
        return ended._replace(record=ended.record.with_cancel_requested())

    async def _await_end(self, process_id: str, wait_seconds: float) -> Snapshot:
        began, watch = time.monotonic(), LeaseWatch(self._leases.settings)
        while True:
            snapshot = await self._end_if_abandoned(process_id, watch, began)
            left = began + wait_seconds - time.monotonic()
            if snapshot.record.terminal or left <= 0:
                return snapshot
            if run := self._runs.get(process_id):
                await asyncio.wait([run.task], timeout=left)
            else:
                await asyncio.sleep(min(left, FOLLOW_SECONDS / 2))

    async def _end_if_abandoned(self, process_id: str, watch: LeaseWatch, began: float) -> Snapshot:
        """How things stand; a process that nobody holds is cancelled on the spot."""
        if self._runs.get(process_id):
            return await self._lookup.get(process_id)
        try:
            stored = await read_stored(self._store, process_id)
        except StorageFailure:
            watch.saw_nothing()
            return await self._lookup.get(process_id, fresh=True)
        record = present(decode_record(process_id, stored.data))
        gone = watch.saw(stored.version, stored.age_seconds) or record.status is Status.INTERRUPTED
        if gone and not record.terminal:
            reason = "cancelled; no worker was running it"
            with suppress(StorageFailure):  # whether it was settled, the next look will tell
                if settled := await settle_abandoned(
                    self._leases,
                    record,
                    stored,
                    lambda r, now: r.cancelled(now, reason=reason),
                    cancelled_seconds_ago=time.monotonic() - began,
                ):
                    return settled
        return Snapshot(record, "storage", stored.age_seconds)
