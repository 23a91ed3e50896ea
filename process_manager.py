"""The life of processes on one worker: start, find, list, cancel, delete, drain, recover.

The record in the store is the truth about a process, and it has one writer: the worker that holds
its lease (`records.lease`), for as long as a `ProcessRun` lives here. This worker only reads the
records of all other processes, and leaves a note beside a record to have its process stopped.

The one door to `processes` for the rooms above.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress

from attempts.archive import Archiver
from attempts.fetching import InputParts
from attempts.gpu_shares import GpuShares
from attempts.kept_models import KeptModels
from attempts.run import AttemptParts
from attempts.slots import Slots
from child.forks import Template
from inputs.blob_cache import BlobCache
from inputs.touches import Touches
from processes.cancelling import Cancelling
from processes.links import LinkMaker, Links
from processes.log_reading import LogLook, LogPage, WantedLines
from processes.lookup import ProcessLookup
from processes.recovery import recover
from processes.removal import ProcessActive, delete_process
from processes.runs import Runs
from processes.starting import Delivery, WorkerBusy
from records.cache import RecordCache
from records.delivery import Start
from records.lease import Leases
from records.manifest import Manifests
from records.record import Record
from records.view import Snapshot
from storage import Store
from stores.prefixes import Removed
from utils import Clock, utc_now
from worker.meter import Meter
from worker.redaction import Redactor
from worker.settings import Settings
from worker.workplace import RECORDS, WORK, Workplace

__all__ = ["LogPage", "ProcessManager", "Start", "WantedLines", "WorkerBusy"]

log = logging.getLogger(__name__)

#: Archives that are written at a time: each takes memory and the store's bandwidth, no slot.
ARCHIVES_AT_ONCE = 2


def new_leases(
    store: Store,
    settings: Settings,
    *,
    redactor: Redactor | None = None,
    clock: Clock = utc_now,
    meter: Meter | None = None,
) -> Leases:
    """The leases of a worker at `store`, with copies of records on its scratch disk."""
    # Workers on one machine may share a disk, but copies of two stores must not meet.
    store_name = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    cache = RecordCache(settings.scratch_dir / RECORDS / store_name)
    return Leases(store, settings, cache, meter=meter, redactor=redactor, clock=clock)


def _attempt_parts(leases: Leases) -> AttemptParts:
    store, settings = leases.store, leases.settings
    scratch = settings.scratch_dir
    template = Template() if settings.template and settings.role != "control" else None
    manifests = Manifests(store)
    return AttemptParts(
        store=store,
        settings=settings,
        meter=leases.meter,
        redactor=leases.redactor,
        workplace=Workplace(scratch / WORK),
        slots=Slots(settings.slots),
        archive_places=Slots(ARCHIVES_AT_ONCE),
        archiver=Archiver(store, manifests, settings.upload_patience_seconds),
        inputs=InputParts(
            store=store,
            settings=settings,
            blobs=BlobCache(scratch / "inputs", settings.input_cache_bytes),
            touches=Touches(store),
            manifests=manifests,
        ),
        gpus=GpuShares(settings.slots),
        kept=KeptModels(template, settings),
    )


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
        self.leases = new_leases(store, settings, redactor=redactor, clock=clock, meter=meter)
        self.parts = _attempt_parts(self.leases)
        self.runs = Runs(self.parts)
        self.leases.meter.watch(self.runs.load)
        manifests = self.parts.inputs.manifests
        self.lookup = ProcessLookup(store, settings, self.leases.cache, manifests, self.runs)
        self._cancelling = Cancelling(self.leases, self.lookup, self.runs)
        self._links = LinkMaker(store)

    @property
    def draining(self) -> bool:
        """Whether this worker is shutting down and begins nothing more."""
        return self.runs.draining

    # ---- start

    async def deliver(self, start: Start) -> Snapshot:
        """See a process to its end: begin it, join it, follow it or take it over.

        RunPod stops a job by cancelling this: the child is killed, the record says so, and only
        then does the CancelledError go on.

        Raises:
            ProcessExists: the id was started with another request.
            WorkerBusy: no slot is free and the caller did not want to wait.
            StorageUnavailable: the store stayed away; nothing was begun here.
        """
        delivery = self._delivery(start)
        task = asyncio.create_task(delivery.until_ended())
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
        return await self._delivery(start).until_begun()

    def _delivery(self, start: Start) -> Delivery:
        return Delivery(start, self.leases, self.runs, self.lookup)

    # ---- what callers may know

    def running_and_queued(self) -> tuple[int, int]:
        """How many processes hold a slot here, and how many wait for one."""
        load = self.runs.load()
        return load.running, load.queued

    @property
    def gpu_memory_leaked(self) -> bool:
        """Whether a child that is gone has left memory of a GPU taken."""
        return self.parts.gpus.leaked

    async def links(self, record: Record) -> Links:
        """Presigned links by which a caller follows and cancels the process without a worker."""
        return await self._links.links(record)

    def log_of(self, record: Record, attempt: int) -> LogLook:
        """The log of one attempt, wherever it runs or ran."""
        return LogLook(self._store, self.runs, record, attempt)

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
        if run := self.runs.get(process_id):
            if not run.lease.record.released:
                raise ProcessActive(f"process {process_id} runs here; `cancel` it first")
            await asyncio.wait([run.task])  # it has ended and only clears up
        return await delete_process(self.leases, process_id)

    # ---- come and go

    def warm_up(self) -> None:
        """Begin to load what attempts are forked from."""
        if template := self.parts.kept.plain:
            template.start()

    async def drain(self) -> None:
        """Stop every process here so that another worker can resume it. Bounded in time."""
        await self.runs.drain()

    async def recover(self) -> None:
        """Do what a worker owes when it starts, and read ahead. Never delays a request.

        Ends of processes that dead workers of this machine could not write are written now, unless
        the process has moved on since.
        """
        await recover(self.leases, self.lookup)
