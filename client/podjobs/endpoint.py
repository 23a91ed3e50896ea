"""An endpoint and its processes, asynchronously; `podjobs.blocking` needs no `await`."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from podjobs.downloads import AT_ONCE as DOWNLOADS_AT_ONCE
from podjobs.downloads import Downloader
from podjobs.errors import (
    ProcessCancelled,
    ProcessFailed,
    ProcessInterrupted,
    UnknownFolder,
    UnknownProcess,
)
from podjobs.local_files import Found, HashCache, find, folder_name
from podjobs.models import RemoteFile, Row, View
from podjobs.policy import policy_of
from podjobs.profile import load_profile
from podjobs.remembered import RememberedJobs
from podjobs.tracking import Logged, StatusChanged
from podjobs.transport import transport_for
from podjobs.uploads import Uploaded, Uploader
from podjobs.watching import Watch, page_of_lines

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from podjobs.downloads import Fetched
    from podjobs.tracking import Event
    from podjobs.transport import Reply

#: How the worker names what it brings itself; anything else in `inputs` is a local path.
REMOTE_SOURCES = ("folder:", "process:", "key:", "https://", "http://")
STORE_TIMEOUT = httpx.Timeout(30.0, read=120.0, write=120.0, pool=None)


def _nothing(_: int) -> None:
    """Report no progress."""


class AsyncEndpoint:
    """The workers of one endpoint.

    `endpoint` is RunPod's endpoint id, or the URL of a local twin or of a worker's own server.
    With two endpoints over one bucket, `control` answers everything but starts, so that no
    question wakes a GPU. The key comes from `key`, RUNPOD_API_KEY or the profile of `podjobs
    login`.

    Raises:
        NotConfigured: no endpoint is known.
        KeyRefused: RunPod needs a key, and there is none.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        control: str | None = None,
        key: str | None = None,
    ) -> None:
        profile = load_profile(endpoint=endpoint, control=control, key=key)
        self.name = profile.endpoint
        self._runs = transport_for(profile.endpoint, profile.key)
        self._asks = transport_for(profile.control, profile.key) if profile.control else self._runs
        limits = httpx.Limits(max_connections=DOWNLOADS_AT_ONCE * 2)
        self._http = httpx.AsyncClient(timeout=STORE_TIMEOUT, limits=limits, follow_redirects=False)
        self._jobs = RememberedJobs(self.name)

    async def __aenter__(self) -> AsyncEndpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections. Processes go on."""
        if self._asks is not self._runs:
            await self._asks.aclose()
        await self._runs.aclose()
        await self._http.aclose()

    # ---- processes

    async def start(
        self,
        kind: str,
        *,
        inputs: Mapping[str, str | os.PathLike[str]] | None = None,
        params: Mapping[str, Any] | None = None,
        process_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        sent: Callable[[int], None] = _nothing,
        **more_params: Any,
    ) -> AsyncProcess:
        """Upload local inputs, send the start, and return a handle at once.

        `inputs` are local paths, or sources that the worker brings (`folder:`, `process:`,
        `key:`, `https://`). Params are given by name or in `params`. A start with the
        `process_id` of an existing process joins or resumes it. `sent` is told the bytes of
        uploads as they go.

        Raises:
            PodjobsError: an input cannot be read or sent, or the start was refused at once.
        """
        sources = {
            name: await self._source(source, sent) for name, source in (inputs or {}).items()
        }
        request: Reply = {"action": "start", "kind": kind}
        request["process_id"] = process_id or new_id(kind)
        request["params"] = {**(params or {}), **more_params}
        optional = {"inputs": sources, "labels": dict(labels or {})}
        request |= {name: value for name, value in optional.items() if value}
        if timeout_seconds is not None:
            request["timeout_seconds"] = timeout_seconds
        process = AsyncProcess(self, request["process_id"], request, timeout_seconds)
        await process.submit()
        return process

    def process(self, process_id: str) -> AsyncProcess:
        """A handle to a process that exists; nothing is asked yet."""
        return AsyncProcess(self, process_id, None, None)

    async def processes(
        self, *, limit: int = 50, status: str | None = None, kind: str | None = None
    ) -> list[Row]:
        """The newest processes first; at most `limit`."""
        rows: list[Row] = []
        cursor: str | None = None
        while len(rows) < limit:
            request: Reply = {"action": "processes", "limit": min(1000, limit - len(rows))}
            chosen = {"status": status, "kind": kind, "cursor": cursor}
            request |= {name: value for name, value in chosen.items() if value is not None}
            reply = await self.ask(request)
            rows += [Row.model_validate(row) for row in reply["processes"]]
            cursor = reply["next_cursor"]
            if cursor is None:
                break
        return rows

    # ---- inputs

    async def upload(
        self,
        source: str | os.PathLike[str] | Found,
        *,
        folder: str | None = None,
        overwrite: bool = False,
        sent: Callable[[int], None] = _nothing,
    ) -> Uploaded:
        """Bring a local folder, file or glob into an input folder; send only what is missing.

        Without `folder` the folder is named after its contents: the same files are sent once, and
        a process never finds its inputs changed.
        """
        found = source if isinstance(source, Found) else await asyncio.to_thread(find, source)
        files = await asyncio.to_thread(lambda: [*HashCache().hashed(found.files)])
        stem = "files" if isinstance(source, Found) else Path(source).name
        name = folder or folder_name(stem, files)
        if folder is None and await self._is_complete(name):
            return Uploaded(name, len(files), sum(file.size for file in files), 0, 0)
        uploader = Uploader(self._asks, self._http)
        return await uploader.upload(name, files, overwrite=overwrite or folder is None, sent=sent)

    async def _source(self, source: str | os.PathLike[str], sent: Callable[[int], None]) -> str:
        """The source of an input as the start names it; a local one is uploaded first."""
        text = os.fspath(source)
        if text.startswith(REMOTE_SOURCES):
            return text
        uploaded = await self.upload(text, sent=sent)
        name = await asyncio.to_thread(_name_of_file, Path(text))
        return f"folder:{uploaded.folder}{name}"

    async def _is_complete(self, folder: str) -> bool:
        """Whether the folder is there, whole. Its name says which files it holds."""
        try:
            reply = await self.ask({"action": "list_files", "folder": folder, "limit": 1})
        except UnknownFolder:
            return False
        return bool(reply["complete"])

    # ---- the endpoint

    async def kinds(self) -> Reply:
        """The kinds of job, each with the JSON schema of its params."""
        reply = await self.ask({"action": "kinds"})
        kinds: Reply = reply["kinds"]
        return kinds

    async def health(self, *, deep: bool = False) -> Reply:
        """The state of one worker and of the store."""
        return await self.ask({"action": "health", "deep": deep})

    async def metrics(self) -> Reply:
        """The figures of this worker, and of all live ones together."""
        return await self.ask({"action": "metrics"})

    async def ask(self, request: Mapping[str, Any], *, low_priority: bool = False) -> Reply:
        """Send any action and return its reply.

        Raises:
            PodjobsError: the worker refused it, or no worker answered.
        """
        return await self._asks.ask(dict(request), low_priority=low_priority)


class AsyncProcess:
    """A process by its id: follow it, fetch its files, cancel it."""

    def __init__(
        self,
        endpoint: AsyncEndpoint,
        process_id: str,
        request: Reply | None,
        timeout_seconds: float | None,
    ) -> None:
        self.id = process_id
        self._endpoint = endpoint
        self._request = request or {"action": "start", "process_id": process_id}
        self._timeout = timeout_seconds
        self._job_id = endpoint._jobs.job_of(process_id)

    async def submit(self) -> str:
        """Send the start; one that exists already is joined or resumed. Returns the job's id."""
        self._job_id = await self._endpoint._runs.submit(self._request, policy_of(self._timeout))
        self._endpoint._jobs.remember(self.id, self._job_id)
        return self._job_id

    async def is_queued(self) -> bool:
        """Whether the start that was sent from here last waits for a worker or is held by one."""
        if self._job_id is None:
            return False
        job = await self._endpoint._runs.job(self._job_id)
        return job is not None and job.active

    async def status(self) -> View:
        """The process now. `not_found` until a worker has taken the start."""
        request = {"action": "process_status", "process_id": self.id}
        return View.model_validate(await self._endpoint.ask(request, low_priority=True))

    async def events(self, *, logs: bool = True, resume: bool = True) -> AsyncGenerator[Event]:
        """All that happens until the process has ended, across workers and attempts.

        When no worker has the process any more, and the platform will not deliver it again, the
        start is sent again, unless `resume` is False or a person cancelled it at the platform.

        Raises:
            UnknownProcess: there is no such process.
            WorkerError: the worker refused the start.
        """
        watch = Watch(
            self.id,
            self._endpoint._runs,
            self._endpoint._asks,
            self._endpoint._http,
            job_id=self._job_id,
            resend=self.submit if resume else None,
        )
        async for event in watch.events(logs=logs):
            if isinstance(event, StatusChanged) and event.view.status == "not_found":
                raise UnknownProcess(f"there is no process {self.id}")
            yield event

    async def wait(self, *, resume: bool = True) -> View:
        """Wait for the end; returns the view of a completed process.

        Raises:
            ProcessFailed, ProcessCancelled, ProcessInterrupted: it ended otherwise.
        """
        view: View | None = None
        async for event in self.events(logs=False, resume=resume):
            if isinstance(event, StatusChanged):
                view = event.view
        if view is None or not view.ended:
            raise ProcessInterrupted(view or await self.status())
        return ended_well(view)

    async def logs(self, *, tail: int = 100) -> list[Logged]:
        """The newest lines that the job printed."""
        request = {"action": "logs", "process_id": self.id, "tail": tail}
        return page_of_lines(await self._endpoint.ask(request))

    async def files(self, pattern: str | None = None) -> list[RemoteFile]:
        """The files that it has stored so far, with links where the store has some."""
        request: Reply = {"action": "download", "process_id": self.id}
        if pattern is not None:
            request["pattern"] = pattern
        files: list[RemoteFile] = []
        cursor: str | None = None
        while True:
            page = {**request, "cursor": cursor} if cursor else request
            reply = await self._endpoint.ask(page)
            files += [RemoteFile.model_validate(row) for row in reply["files"]]
            cursor = reply["next_cursor"]
            if cursor is None:
                return files

    async def download(
        self,
        out: str | os.PathLike[str],
        pattern: str | None = None,
        *,
        got: Callable[[int], None] = _nothing,
    ) -> list[Fetched]:
        """Fetch its files into the folder `out`: in parallel, resumed, verified, whole.

        `got` is told the bytes as they arrive.
        """
        files = await self.files(pattern)
        downloader = Downloader(self.id, self._endpoint._asks, self._endpoint._http)
        return await downloader.download(files, _home(out), got=got)

    async def cancel(self, *, wait_seconds: float = 60) -> View:
        """Stop it, wherever it runs; a start that no worker has taken leaves the queue."""
        if await self.leave_queue():
            return View(process_id=self.id, status="cancelled", source="platform")
        request = {"action": "cancel", "process_id": self.id, "wait_seconds": wait_seconds}
        return View.model_validate(await self._endpoint.ask(request))

    async def leave_queue(self) -> bool:
        """Take a start that no worker has taken yet out of the platform's queue.

        Returns whether there was one. A worker that takes it at the same moment stops it.
        """
        job = await self._endpoint._runs.job(self._job_id) if self._job_id else None
        if job is None or job.status != "IN_QUEUE":
            return False
        await self._endpoint._runs.stop(job.id)
        return True

    async def resume(self) -> AsyncProcess:
        """Send the start again: the process goes on from its last checkpoint."""
        await self.submit()
        return self

    async def delete(self) -> Reply:
        """Remove it with all its files, for good. It must have ended."""
        request = {"action": "delete", "process_id": self.id, "confirm": self.id}
        reply = await self._endpoint.ask(request)
        self._job_id = None
        self._endpoint._jobs.forget(self.id)
        deleted: Reply = reply["deleted"]
        return deleted


def ended_well(view: View) -> View:
    """`view`, if its process completed.

    Raises:
        ProcessFailed, ProcessCancelled, ProcessInterrupted: it did not.
    """
    if view.stopped_by_platform:
        raise ProcessInterrupted(view)
    if view.status == "failed":
        raise ProcessFailed(view)
    if view.status == "cancelled":
        raise ProcessCancelled(view)
    return view


def _home(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` replaced."""
    return Path(path).expanduser()


def _name_of_file(source: Path) -> str:
    """`/NAME` of a single file: then the input is that file, and no folder with one file in it."""
    return f"/{source.name}" if source.expanduser().is_file() else ""


def new_id(kind: str) -> str:
    """A fresh id that says the kind."""
    return f"{kind.replace('_', '-')}-{uuid.uuid4().hex[:12]}"
