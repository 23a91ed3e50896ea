"""How a process stands: RAM if it runs here, else the store, else a copy that says it is stale."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from processes.runs import Runs
from records.cache import Copy, RecordCache
from records.index import Row, read_rows
from records.lease import until_answered
from records.manifest import Artifact, Manifests, find
from records.reading import UnknownProcess, check_attempt, decode_record, present, read_stored
from records.record import Status
from records.view import Snapshot
from records.why import NO_PROGRESS, Why, why
from storage import StorageFailure, StorageUnavailable, Store
from worker.settings import Settings

#: An end that is final can only be deleted: whoever knows it looks again after this long.
FINAL_SECONDS = 60.0
#: How often a process that another worker runs is looked at while somebody waits for it.
FOLLOW_SECONDS = 1.0


class ProcessLookup:
    """Reads. Nothing here changes a record, whatever it finds."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        cache: RecordCache,
        manifests: Manifests,
        runs: Runs,
    ) -> None:
        self._store = store
        self._settings = settings
        self._cache = cache
        self._manifests = manifests
        self._runs = runs

    async def get(self, process_id: str, *, fresh: bool = False) -> Snapshot:
        """A process as well as it can be known from here: RAM, then the store, then a copy.

        `fresh`: the store is asked even about an end that is final. For whoever acts upon the
        answer: the process may be deleted, and its id in use again.

        Raises:
            UnknownProcess: the store says there is none.
            StorageUnavailable, StorageMisconfigured: it cannot be asked, and there is no copy.
        """
        if run := self._runs.held(process_id):
            position = run.slots.position(process_id)
            return Snapshot(run.lease.record, "memory", run.lease.age_seconds, False, position)
        copy = await self._cache.find(process_id)
        if copy and copy.final and copy.seen_within(FINAL_SECONDS) and not fresh:
            return Snapshot(copy.record, "cache", copy.age_now())
        try:
            return await self._read(process_id, copy)
        except StorageFailure:
            if copy is None:
                raise
            return Snapshot(copy.record, "cache", copy.age_now(), stale=True)

    async def get_patiently(self, process_id: str) -> Snapshot:
        """As `get` with `fresh`, but waits for a store that is away: for a redelivered job."""
        try:
            async with asyncio.timeout(self._settings.store_patience_seconds):
                return await until_answered(lambda: self.get(process_id, fresh=True))
        except TimeoutError:
            raise StorageUnavailable(
                "the store did not answer for as long as a start waits"
            ) from None

    def without_progress(self) -> list[str]:
        """The processes that run here and have reported no progress for too long."""
        return [
            run.process_id
            for run in self._runs
            if (reason := self.why(Snapshot(run.lease.record, "memory", run.lease.age_seconds)))
            and reason.code == NO_PROGRESS
        ]

    def why(self, snapshot: Snapshot) -> Why | None:
        """The reason why a process does not come along, by this worker's settings."""
        settings = self._settings
        return why(
            snapshot, lease_seconds=settings.lease_seconds, stall_seconds=settings.stall_seconds
        )

    async def artifacts(self, snapshot: Snapshot) -> list[Artifact]:
        """What the process has stored, by path; of a running one, so far."""
        if run := self._runs.held(snapshot.record.process_id):
            return [Artifact.of(file) for file in run.uploads.files()]
        return await self._manifests.artifacts(snapshot.record)

    async def artifacts_of(self, snapshot: Snapshot, attempt: int) -> list[Artifact]:
        """What lies in the store under the number of one attempt.

        Raises:
            UnknownAttempt: the process has had no such attempt.
        """
        check_attempt(snapshot.record, attempt)
        return await self._manifests.of_attempt(snapshot.record, attempt)

    async def artifact(self, snapshot: Snapshot, path: str) -> Artifact:
        """One of them.

        Raises:
            UnknownArtifact: none has this path.
        """
        if self._runs.held(snapshot.record.process_id):
            return find(await self.artifacts(snapshot), path)
        return await self._manifests.artifact(snapshot.record, path)

    async def _read(self, process_id: str, copy: Copy | None) -> Snapshot:
        try:
            cached = copy.as_stored() if copy else None
            stored = await read_stored(self._store, process_id, cached=cached)
            known = copy.record if copy and copy.own and copy.version == stored.version else None
            record = known or decode_record(process_id, stored.data)
            present(record)
        except UnknownProcess:
            await self._cache.drop(process_id)
            raise
        await self._cache.keep(
            Copy(
                record=record,
                version=stored.version,
                modified=stored.modified,
                age_seconds=stored.age_seconds,
                seen_at=time.time(),
            )
        )
        return Snapshot(record, "storage", stored.age_seconds)

    async def wait_for_news(
        self, process_id: str, *, since_revision: int, wait_seconds: float
    ) -> Snapshot:
        """The process as soon as its revision is above `since_revision`, or the time is over.

        Raises: as `get`.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            snapshot = await self.get(process_id)
            left = deadline - time.monotonic()
            if snapshot.record.revision > since_revision or snapshot.record.released or left <= 0:
                return snapshot
            if run := self._runs.held(process_id):
                with suppress(TimeoutError):
                    await asyncio.wait_for(run.lease.revision_above(since_revision), left)
            else:
                await asyncio.sleep(min(left, FOLLOW_SECONDS))

    async def list(
        self, *, limit: int, cursor: str | None, status: Status | None, kind: str | None
    ) -> tuple[list[Row], str | None]:
        """Rows newest first, and the cursor for the next page. One request."""
        return await read_rows(self._store, limit=limit, cursor=cursor, status=status, kind=kind)
