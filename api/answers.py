"""From an action to its reply, on one worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from api.about import AboutActions
from api.actions import (
    BulkDownloadAction,
    CancelAction,
    HealthAction,
    KindsAction,
    LogsAction,
    MetricsAction,
    ProcessesAction,
    ProcessStatusAction,
    StartAction,
)
from api.files import FileActions
from api.limits import check_size
from api.logs import LogActions
from api.parsing import parse_action
from api.progress import Show, progress_shown
from api.starts import Starts, archive_start
from health.presence import Presence
from process_manager import ProcessManager, Start
from programs.declaration import Programs
from records.index import rows_shown
from records.reading import UnknownProcess
from records.record import Status
from records.replies import Reply
from records.view import Snapshot, view
from storage import PresignUnsupported, StorageFailure, Store
from utils import WorkerError
from worker.redaction import Redactor
from worker.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

#: How long links in a finished start's reply stay valid.
LINKS_SECONDS = 3600


class Refused(WorkerError):
    """This worker does not do that, by its settings."""

    code = "refused"


class HandedBack(Exception):
    """This worker is shutting down; another one has to see the start through."""

    def __init__(self, reply: Reply | None = None) -> None:
        """`reply` shows how the process was left; None if it was not begun here."""
        super().__init__("this worker is shutting down")
        self.reply = reply


class Answers:
    """Carries out one action per call. What it returns is JSON-ready; it prints nothing."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        manager: ProcessManager,
        presence: Presence,
        programs: Programs,
        redactor: Redactor,
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._lookup = manager.lookup
        self._starts = Starts(settings, redactor, programs)
        self._files = FileActions(store, manager, settings)
        self._logs = LogActions(manager, settings)
        self._about = AboutActions(store, manager, settings, presence, programs)

    async def answer(self, job: dict[str, Any], show: Show) -> Reply:
        """The reply to the action of a job as RunPod hands it out.

        `show` shows the progress of a start while it is held.

        Raises:
            WorkerError: the request failed.
            HandedBack: a start that another worker has to see through.
        """
        request = job.get("input")
        small = check_size(request).small
        action = await _read(small, parse_action, request)
        match action:
            case StartAction():
                return await self._start(action, job, show, small=small)
            case ProcessStatusAction():
                return await self._process_status(action)
            case ProcessesAction():
                return await self._processes(action)
            case CancelAction():
                return await self._cancel(action)
            case BulkDownloadAction(archive=True):
                # A process like any other, but written by the worker itself: any role may.
                start = archive_start(action, job)
                return await self._see_through(start, show, expires_in=action.expires_in)
            case LogsAction():
                return await self._logs.answer(action)
            case HealthAction() | MetricsAction() | KindsAction():
                return await self._about.answer(action)
            case _:
                return await self._files.answer(action)

    async def _start(
        self, action: StartAction, job: dict[str, Any], show: Show, *, small: bool
    ) -> Reply:
        if self._settings.role == "control":
            raise Refused(
                "this worker has the role `control` and runs no jobs; send `start` to the GPU "
                "endpoint"
            )
        start = await self._start_of(action, job, small=small)
        if not action.detach:
            return await self._see_through(start, show)
        if not self._settings.allow_detach:
            raise Refused(
                "`detach` is refused: RunPod stops an idle worker and the job with it; on a "
                "Pod or an always-on worker, set WORKER_ALLOW_DETACH=1"
            )
        if self._manager.draining:
            raise HandedBack
        return await self._view(await self._manager.begin(start))

    async def _start_of(self, action: StartAction, job: dict[str, Any], *, small: bool) -> Start:
        if action.kind:
            return await _read(small, self._starts.of, action, job)
        assert action.process_id is not None
        snapshot = await self._lookup.get_patiently(action.process_id)
        return await asyncio.to_thread(self._starts.again, snapshot.record, action, job)

    async def _see_through(
        self, start: Start, show: Show, *, expires_in: int = LINKS_SECONDS
    ) -> Reply:
        """Hold the request until the process ends; the reply says how it did."""
        if self._manager.draining:
            raise HandedBack

        async def look() -> Reply:
            return await self._view(await self._lookup.get(start.process_id))

        async with progress_shown(show, look):
            snapshot = await self._manager.deliver(start)
        reply = await self._ended(snapshot, expires_in)
        if snapshot.record.status is Status.INTERRUPTED:
            raise HandedBack(reply)
        return reply

    async def _ended(self, snapshot: Snapshot, expires_in: int) -> Reply:
        """The reply of a start: the view, its files, and `error` if the process failed."""
        record = snapshot.record
        reply = await self._view(snapshot)
        page: Reply = {"files": [], "next_cursor": None}
        # How it ended is known and stored. `download` makes the links again, also later.
        with suppress(PresignUnsupported, StorageFailure):
            page = await self._files.page_of_files(snapshot, expires_in=expires_in)
        if record.failure is not None and record.status is Status.FAILED:
            failure = record.failure
            reply["error"] = json.dumps(
                {"code": failure.code, "message": failure.message, "retryable": failure.retryable}
            )
        if self._manager.gpu_memory_leaked:  # the SDK takes it out and ends this worker
            reply["refresh_worker"] = True
        return reply | page

    async def _process_status(self, action: ProcessStatusAction) -> Reply:
        try:
            snapshot = await self._lookup.wait_for_news(
                action.process_id,
                since_revision=action.since_revision,
                wait_seconds=action.wait_seconds,
            )
        except UnknownProcess:
            return {"process_id": action.process_id, "status": "not_found"}
        return await self._view(snapshot)

    async def _processes(self, action: ProcessesAction) -> Reply:
        rows, cursor = await self._lookup.list(
            limit=action.limit, cursor=action.cursor, status=action.status, kind=action.kind
        )
        # A thousand rows take 4 ms: too long for the event loop.
        return {"processes": await asyncio.to_thread(rows_shown, rows), "next_cursor": cursor}

    async def _cancel(self, action: CancelAction) -> Reply:
        snapshot = await self._manager.cancel(action.process_id, wait_seconds=action.wait_seconds)
        return await self._view(snapshot)

    async def _view(self, snapshot: Snapshot) -> Reply:
        reply = view(snapshot, lease_seconds=self._settings.lease_seconds)
        reason = self._lookup.why(snapshot)
        reply["why"] = reason._asdict() if reason else None
        if not snapshot.record.released:
            reply["links"] = {**await self._manager.links(snapshot.record)}
        return reply


async def _read(small: bool, read: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """What `read` makes of a request; a large one is read in a thread."""
    if small:
        return read(*args, **options)
    return await asyncio.to_thread(read, *args, **options)
