"""The life of processes on one worker: start, find, list, cancel, delete, drain, recover.

The record in the store is the truth about a process, and it has one writer: the worker that holds
its lease (`processes.lease`), for as long as a `ProcessRun` lives here. This worker only reads the
records of all other processes, and leaves a note beside a record to have its process stopped.

The one door to `processes` for the rooms above.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from meter import Meter
from processes.cancelling import Cancelling
from processes.delivery import Start
from processes.links import LinkMaker, Links
from processes.log_reading import LogLook, LogPage, Wanted
from processes.lookup import ProcessLookup
from processes.record import Record, Snapshot
from processes.recovery import recover
from processes.removal import ProcessActive, delete_process
from processes.runs import Runs
from processes.starting import Delivery, WorkerBusy
from processes.worker import new_worker
from redaction import Redactor
from settings import Settings
from storage import Store
from stores.prefixes import Removed
from utils import Clock, utc_now

__all__ = ["LogPage", "ProcessManager", "Start", "Wanted", "WorkerBusy"]

log = logging.getLogger(__name__)


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
        self.worker = new_worker(store, settings, redactor or Redactor(), clock, meter)
        self.runs = Runs(self.worker)
        self.worker.meter.watch(self.runs.load)
        self.lookup = ProcessLookup(self.worker, self.runs)
        self._cancelling = Cancelling(self.worker, self.lookup, self.runs)
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
        return Delivery(start, self.worker, self.runs, self.lookup)

    # ---- what callers may know

    def running_and_queued(self) -> tuple[int, int]:
        """How many processes hold a slot here, and how many wait for one."""
        load = self.runs.load()
        return load.running, load.queued

    @property
    def gpu_memory_leaked(self) -> bool:
        """Whether a child that is gone has left memory of a GPU taken."""
        return self.worker.gpus.leaked

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
        return await delete_process(self.worker, process_id)

    # ---- come and go

    def warm_up(self) -> None:
        """Begin to load what attempts are forked from."""
        if template := self.worker.template:
            template.start()

    async def drain(self) -> None:
        """Stop every process here so that another worker can resume it. Bounded in time."""
        await self.runs.drain()

    async def recover(self) -> None:
        """Do what a worker owes when it starts, and read ahead. Never delays a request.

        Ends of processes that dead workers of this machine could not write are written now, unless
        the process has moved on since.
        """
        await recover(self.worker, self.lookup)
