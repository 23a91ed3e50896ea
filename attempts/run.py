"""A process while this worker holds it: wait for a slot, run the child, store, settle.

The one place where a child's end, a request to stop and the loss of the lease meet. The rule: the
first reason to stop counts, a child that finished its work before it heard of it has finished, and
whoever lost the lease writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import JsonValue

from attempts.archive import (
    ARCHIVE,
    ArchiveFailed,
    ArchiveParams,
    Archiver,
    NothingToArchive,
)
from attempts.failures import failure_of, timed_out
from attempts.fetching import InputParts, Inputs
from attempts.gpu_shares import GpuMemoryShort, GpuShares
from attempts.kept_models import KeptModels
from attempts.log_writing import AttemptLog
from attempts.own_files import OwnFolder
from attempts.phases import ENDED, Phases
from attempts.restoring import restore
from attempts.slots import Slots
from attempts.uploads import UploadFailed, Uploads
from child.environment import passed_through
from child.events import ArtifactReady, CheckpointSealed, Event, PhaseEntered, Progress
from child.runner import Attempt, Child
from child.verdict import Completed, Failed, Stopped, Verdict
from inputs.errors import InputError
from inputs.files import to_the_end
from jobs import JOBS
from records.delivery import Start
from records.index import IndexEntry
from records.lease import Change, Lease, LeaseLost
from records.notes import read_note
from records.record import ProgressSeen, Record
from storage import StorageFailure, Store
from worker.log import log_context
from worker.meter import Meter
from worker.redaction import Redactor
from worker.settings import Settings
from worker.workplace import Workplace

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Of the grace period of a drain: for the child to end, for its last checkpoint to be stored, and
#: for the end of its log. The rest is for the record, and for replies.
CHILD_SHARE, CHECKPOINT_SHARE, LOG_SHARE = 0.4, 0.25, 0.1
#: At any other end it may take so long, once before the record and, if that failed, once after it.
LOG_PATIENCE_SECONDS = 10.0


class StopReason(StrEnum):
    """Why an attempt is made to end before its job does."""

    CANCEL = "cancelled by a caller"
    PLATFORM = "stopped by the platform"
    DRAIN = "the worker is shutting down"
    TIMEOUT = "timeout_seconds exceeded"
    LOST = "another worker took the process over"


class _StopAsked(Exception):
    """A request to stop came before the work was done."""


class AttemptParts(NamedTuple):
    """What the attempts of one worker share."""

    store: Store
    settings: Settings
    meter: Meter
    #: Knows this worker's secrets; what leaves a process goes through it.
    redactor: Redactor
    #: Where attempts work.
    workplace: Workplace
    #: For attempts that run a child.
    slots: Slots
    #: For archives, which this worker writes itself.
    archive_places: Slots
    archiver: Archiver
    inputs: InputParts
    #: The GPUs of this machine, by slots.
    gpus: GpuShares
    #: Which template an attempt is forked from.
    kept: KeptModels


class ProcessRun:
    """One attempt at a process on this worker, from claim to settled record."""

    def __init__(self, parts: AttemptParts, lease: Lease, start: Start) -> None:
        """Begins at once. `start` holds what the caller gave, secrets included; it stays in RAM."""
        self.lease = lease
        self._parts = parts
        self._store = parts.store
        self._settings = parts.settings
        self._clock = lease.clock
        self._start = start
        record = lease.record
        self.process_id = record.process_id
        lease.redactor = parts.redactor.knowing(start.secrets)
        self._own = OwnFolder(parts.workplace, f"{self.process_id}.{record.writer.nonce}")
        self._folder = self._own.path
        self._uploads = Uploads(parts.store, lease, self._own, parts.settings)
        self.log = AttemptLog(parts.store, lease, self._own, parts.settings.log_bytes)
        #: Whether it runs a child or waits to; not any more when only files are left to store.
        self.wants_slot = start.kind != ARCHIVE
        self.slots = parts.slots if self.wants_slot else parts.archive_places
        self._stopping = asyncio.Event()
        self._reason: StopReason | None = None
        self._asked_at: float | None = None
        self._child: Child | None = None
        self._first_progress: tuple[int, float] | None = None
        self._index = IndexEntry(parts.store)
        first = "inputs" if start.inputs else "queued"
        self.phases = Phases(lease, parts.meter, first, has_child=self.wants_slot)
        #: Done when the record is settled or lost, and nothing of this attempt is left.
        self.task = asyncio.create_task(self._live(), name=f"run {self.process_id}")

    @property
    def uploads(self) -> Uploads:
        return self._uploads

    def stop(self, reason: StopReason, *, asked_seconds_ago: float | None = 0.0) -> None:
        """Make it end, soon. The first reason counts; losing the lease overrides it.

        How long ago it was asked is measured; None: unknown.
        """
        if self._reason is None or reason is StopReason.LOST:
            self._reason = reason
            if asked_seconds_ago is not None:
                self._asked_at = time.monotonic() - asked_seconds_ago
        if reason is StopReason.CANCEL and not self.lease.desired.released:
            self.lease.submit(Record.with_cancel_requested)
        self._stopping.set()

    # ---- the attempt, top to bottom

    async def _live(self) -> None:
        attempt = self.lease.record.attempt
        with log_context(self.lease.redactor, process_id=self.process_id, attempt=attempt):
            await self._live_and_clear_up()

    async def _live_and_clear_up(self) -> None:
        background = [asyncio.create_task(self._logged(each)) for each in self._background()]
        try:
            await self._attempt()
        except LeaseLost:
            log.warning("process %s: %s", self.process_id, StopReason.LOST)
        except Exception as error:  # noqa: BLE001 - nothing may leave a process without an end
            with suppress(LeaseLost):
                await self._end_by_fault(error)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self.phases.enter(ENDED)  # news for the lease, so not while it is being cancelled
            await self._uploads.close()
            if not self.lease.lost.is_set():
                with suppress(StorageFailure):
                    await self._index.show(self.lease.record)
            await asyncio.to_thread(self._own.discard)

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self.lease.keep(),
            self._watch_note(),
            self._watch_lease(),
            self.log.keep(),
            self._keep_index(),
            self._uploads.keep_manifest(self._settings.progress_write_seconds),
        ]

    async def _logged(self, background: Coroutine[Any, Any, None]) -> None:
        """Logs a background task that breaks; without a lease kept, `lost` ends the run."""
        try:
            await background
        except Exception:
            log.exception("process %s: a fault beside the attempt", self.process_id)

    async def _attempt(self) -> None:
        verdict: Verdict = Stopped()
        await to_the_end(self._own.make)
        with suppress(_StopAsked):
            try:
                await self._unless_stopping(self._uploads.inherit())
                await self._unless_stopping(self._bring_inputs())
                verdict = await self._work_in_a_slot()
            except (
                InputError,
                ArchiveFailed,
                NothingToArchive,
                UploadFailed,
                GpuMemoryShort,
            ) as error:
                verdict = Failed(failure_of(error))
        # The slot is free again: the next child may use the GPU while this one's files travel.
        self.wants_slot = False
        await self._settle(verdict)

    async def _bring_inputs(self) -> None:
        """Before there is a slot: another child may use the GPU while they travel."""
        if self._start.inputs:
            inputs = Inputs(self._parts.inputs, self._own, self._input_came)
            await inputs.bring(self._start.inputs)
            self.lease.report(lambda r: r.with_progress(None))  # what is reported next is the job's
            self.phases.enter("queued")

    def _input_came(self, so_far: int, known: int) -> None:
        """`known` does not count what comes from the web: its size is known when it is here."""
        seen = ProgressSeen(step=so_far, total=max(so_far, known), message="bytes of the inputs")
        self.lease.report(lambda r: r.with_progress(seen))

    async def _work_in_a_slot(self) -> Verdict:
        async with self.slots.taken_by(self.process_id, unless=self._stopping) as slot:
            if slot is None or self._stopping.is_set():
                return Stopped()
            if self._start.kind == ARCHIVE:
                return await self._unless_stopping(self._write_archive())
            resume_from = await self._unless_stopping(self._restore())
            needed = JOBS[self._start.kind].gpu_bytes
            async with self._parts.gpus.taken(slot, needed, unless=self._stopping) as devices:
                return await self._run_child(resume_from, devices)

    async def _write_archive(self) -> Verdict:
        """The other thing that a process can be: no child, but files streamed into one zip."""
        self.phases.enter("running")
        self.lease.submit(lambda r: r.running(self._clock()))
        params = ArchiveParams.model_validate(self._start.params)
        record = self.lease.record
        return Completed(
            await self._parts.archiver.write(record, self._uploads, params, self._archive_grew)
        )

    def _archive_grew(self, so_far: int, size: int) -> None:
        self._heard(Progress(step=so_far, total=size, message="bytes of the archive", metrics={}))

    async def _restore(self) -> Path | None:
        """The checkpoint to go on from, if there is one."""
        self.phases.enter("startup")
        wanted = self.lease.record.checkpoints
        path, found = await restore(self._store, self.process_id, wanted, self._own)
        if found != (wanted[-1] if wanted else None):
            self.lease.submit(lambda r: r.with_checkpoints((found,) if found else ()))
        return path

    async def _run_child(self, resume_from: Path | None, devices: Mapping[str, str]) -> Verdict:
        record = self.lease.record
        attempt = Attempt(
            process_id=self.process_id,
            kind=record.kind,
            params=self._start.params,
            number=record.attempt,
            folder=self._folder,
            resume_from=resume_from,
            environment={**passed_through(self._settings.child_env), **devices},
            unpack=tuple(name for name, each in self._start.inputs.items() if each.unpack),
            max_unpacked_bytes=self._settings.max_input_bytes,
            prepare_dir=self._settings.prepared_root(),
            declaration=self._start.declaration,
        )
        kept = self._parts.kept
        template = await self._unless_stopping(kept.template_for(self._start, self._own))
        kept.begin(template)
        verdict: Verdict = Stopped()
        try:
            child = await Child.spawn(attempt, self.lease.redactor.text, template=template)
            verdict = await self._follow(child)
        finally:
            await kept.end(template, well=isinstance(verdict, Completed))
        return verdict

    async def _follow(self, child: Child) -> Verdict:
        """See it to its end; heed whoever wants it to end before."""
        self._child = child
        self.log.follow(child.log)
        self.lease.submit(lambda r: r.running(self._clock()))
        self.phases.enter("running")
        stopper = asyncio.create_task(self._stop_child(child))
        timer = self._start_timer(self.lease.record.timeout_seconds)
        try:
            return await child.run(self._heard)
        finally:
            timer.cancel()
            stopper.cancel()
            await asyncio.gather(stopper, return_exceptions=True)
            await child.kill()  # it is gone by now, unless this task is being torn down

    async def _settle(self, verdict: Verdict) -> None:
        """Turn the child's end and our reason to stop, if any, into the record's last change."""
        self.phases.enter("upload")
        match verdict:
            case Completed(result):
                await self._complete(result)
            case Failed(failure) if self._reason is None:
                with suppress(_StopAsked, UploadFailed):
                    await self._unless_stopping(self._store_what_is_left())
                await self._end(lambda r: r.failed(self._clock(), failure))
            case _:
                await self._end_stopped()

    async def _complete(self, result: JsonValue) -> None:
        """Everything is stored, then the manifest, then `completed`. A cancel may still win."""
        try:
            await self._unless_stopping(self._uploads.finish())
        except _StopAsked:
            await self._end_stopped()
        except UploadFailed as error:
            failure = failure_of(error)
            await self._end(lambda r: r.failed(self._clock(), failure))
        else:
            await self._end(lambda r: r.completed(self._clock(), result), complete=True)

    async def _end_stopped(self) -> None:
        match self._reason:
            case StopReason.CANCEL:
                await self._end(lambda r: r.cancelled(self._clock(), reason=StopReason.CANCEL))
                if self._asked_at is not None:
                    self._parts.meter.cancelled(time.monotonic() - self._asked_at)
            case StopReason.PLATFORM:
                await self._store_last_checkpoint()
                await self._end(lambda r: r.stopped_by_platform(self._clock()))
            case StopReason.DRAIN:
                await self._store_last_checkpoint()
                await self._end(lambda r: r.interrupted(self._clock(), reason=StopReason.DRAIN))
            case StopReason.TIMEOUT:
                await self._store_last_checkpoint()
                with suppress(UploadFailed):
                    await self._uploads.finish()
                await self._end(lambda r: r.failed(self._clock(), timed_out(r)))
            case _:
                raise LeaseLost(StopReason.LOST)

    async def _end_by_fault(self, error: Exception) -> None:
        """Our own fault or this machine's; the process must not hang on it."""
        log.error("process %s ended by %r", self.process_id, error, exc_info=error)
        await self.lease.change(
            lambda r: r if r.released else r.failed(self._clock(), failure_of(error))
        )
        await self._finish_log(patiently=True)

    async def _end(self, change: Change, *, complete: bool = False) -> None:
        """The last writes of this attempt: log, manifest, record."""
        await self._finish_log(patiently=False)
        await self._uploads.inherit()
        if complete or self._uploads.files():
            await self._uploads.write_manifest(complete=complete)
        self.phases.enter(ENDED)
        files = self._uploads.inline_files()
        summary = self._uploads.summary()
        await self.lease.change(lambda r: change(r.with_artifacts(summary).with_files(files)))
        await self._finish_log(patiently=True)

    async def _finish_log(self, *, patiently: bool) -> None:
        draining = self._reason is StopReason.DRAIN
        share = self._settings.grace_seconds * LOG_SHARE
        await self.log.finish(share if draining else LOG_PATIENCE_SECONDS, patiently=patiently)

    async def _store_what_is_left(self) -> None:
        """Of a job that failed: what to resume from, and what it made. Nothing hurries."""
        await self._uploads.checkpoints_stored()
        await self._uploads.finish()

    async def _store_last_checkpoint(self) -> None:
        """Bounded: without it an interval of work is lost, over the deadline the whole drain is."""
        try:
            async with asyncio.timeout(self._settings.grace_seconds * CHECKPOINT_SHARE):
                await self._uploads.checkpoints_stored()
        except TimeoutError:
            log.warning("process %s: the last checkpoint was not stored", self.process_id)

    # ---- what goes on beside it

    async def _watch_note(self) -> None:
        """See a cancel note within one poll, also while the process is queued."""
        readable = True
        while not self._stopping.is_set():
            try:
                note = await read_note(self._store, self.process_id)
            except StorageFailure as error:
                if readable:  # the first failure of a row; more would fill the log
                    text = "process %s: its cancel note cannot be read: %s"
                    log.warning(text, self.process_id, error)
                readable = False
            else:
                readable = True
                if note is not None and note.concerns(self.lease.record):
                    reason = StopReason.PLATFORM if note.by_platform else StopReason.CANCEL
                    self.stop(reason, asked_seconds_ago=note.age_seconds)
                    return
            await asyncio.sleep(self._settings.cancel_poll_seconds)

    async def _watch_lease(self) -> None:
        await self.lease.lost.wait()
        self.stop(StopReason.LOST)
        if self._child:
            await self._child.kill()

    async def _keep_index(self) -> None:
        """The index follows the record: what is listed was stored before."""
        while not self.lease.ended:  # how it ended, `_live` shows
            record = self.lease.record
            with suppress(StorageFailure):
                await self._index.show(record)
            await self.lease.revision_above(record.revision)

    async def _stop_child(self, child: Child) -> None:
        await self._stopping.wait()
        grace = self._settings.cancel_grace_seconds
        if self._reason is StopReason.DRAIN:
            grace = min(grace, self._settings.grace_seconds * CHILD_SHARE)
        if self._reason is StopReason.LOST:  # its work is somebody else's by now
            grace = 0
        await child.stop(grace_seconds=grace)

    # ---- small things

    def _heard(self, event: Event) -> None:
        match event:
            case Progress():
                now = time.monotonic()
                first_step, since = self._first_progress = self._first_progress or (event.step, now)
                before, at = self.lease.desired.progress, self._clock()
                if before and before.step == event.step and before.at:
                    at = before.at
                seen = ProgressSeen.of(event, first_step=first_step, seconds=now - since, at=at)
                self.lease.report(lambda r: r.with_progress(seen))
            case PhaseEntered(phase=phase):
                self._first_progress = None
                self.lease.report(lambda r: r.with_progress(None))
                self.phases.enter(phase)
            case ArtifactReady(path):
                self._uploads.offer(path)
            case CheckpointSealed():
                self._uploads.seal(event)

    async def _unless_stopping(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of `work`.

        Raises:
            _StopAsked: a request to stop came first; `work` is cancelled.
        """
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _StopAsked
            return task.result()
        finally:
            task.cancel()
            stop.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    def _start_timer(self, seconds: float | None) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        if seconds is None:
            return loop.call_later(0, lambda: None)
        return loop.call_later(seconds, self.stop, StopReason.TIMEOUT)
