"""One attempt's files on their way into the store, while the job that makes them goes on.

Artifacts go up as they are offered and once more, whatever is new or changed, at the end. Of
checkpoints only the newest matters: one that is overtaken before its turn is dropped. All of it
lies under the attempt's own number, so an attempt that lost its process can touch nobody's files.
"""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from io import FileIO
from typing import Final, Protocol, TypeVar

from attempts.job_files import FileState, state_of, upload_file
from attempts.own_files import NO_LINKS, NameCount, OwnFolder, Refusals
from child.events import CheckpointSealed
from child.names import in_key, on_disk, shown
from records.keys import attempt_prefix
from records.lease import Lease, LeaseLost
from records.manifest import Manifest, artifact_key, manifest_key, read_manifest, running_key
from records.record import (
    MAX_FILES_INLINE,
    ArtifactFile,
    ArtifactsSummary,
    Checkpoint,
    CheckpointFile,
    Trouble,
)
from storage import ChecksumMismatch, FileFacts, StorageFailure, Store
from utils import WorkerError
from worker.beneath import FileRefused
from worker.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Called with bytes so far and bytes in all.
OnProgress = Callable[[int, int], None]
#: Files of one attempt that travel at the same time; a big one is sent in parts by the store.
CONCURRENT_FILES = 16
#: When an artifact has failed, the others have this long to be stored all the same.
LAST_CHANCE_SECONDS = 60.0
#: Files that are stored of the outputs, and of a checkpoint: a job can make millions.
MAX_ARTIFACTS = 100_000
MAX_CHECKPOINT_FILES = 10_000
#: Distinct paths that are sent as they are offered; others wait for the end.
MAX_OFFERED = 10_000
#: In the attempt's folder.
OUTPUTS: Final = "outputs"


class UploadFailed(WorkerError):
    """An artifact could not be stored; what was stored before it stays reachable."""

    code = "upload_failed"
    retryable = True


class OutputTooLarge(UploadFailed):
    """The process would store more than WORKER_MAX_OUTPUT_BYTES."""

    code = "output_too_large"
    retryable = False


def checkpoint_key(process_id: str, checkpoint: Checkpoint, path: str) -> str:
    prefix = attempt_prefix(process_id, checkpoint.attempt)
    return f"{prefix}checkpoints/{checkpoint.seq:06d}/{in_key(path)}"


class Content(Protocol):
    """An artifact in the making: its bytes, once, and how many there will be."""

    size: int

    def chunks(self) -> AsyncIterator[bytes]: ...


class Uploads:
    """Everything one attempt stores beside its record."""

    def __init__(self, store: Store, lease: Lease, folder: OwnFolder, settings: Settings) -> None:
        self._store = store
        self._lease = lease
        self._folder = folder
        self._patience_seconds = settings.upload_patience_seconds
        self._max_bytes = settings.max_output_bytes
        #: Of artifacts that are on their way.
        self._under_way = 0
        self._process_id = lease.record.process_id
        self._attempt = lease.record.attempt
        self._stored: dict[str, tuple[FileState, ArtifactFile]] = {}
        #: Artifacts that never were files here: streamed ones, and those of earlier attempts.
        self._others: dict[str, ArtifactFile] = {}
        #: Of all artifacts.
        self._total_bytes = 0
        #: Whether artifacts of earlier attempts are known: from the record, unless too many.
        self._inherited = lease.record.files is not None
        self._take_over(lease.record.files or ())
        self._refused = Refusals()
        self._sent_bytes = 0
        #: When the store last took some bytes.
        self._moved_at = 0.0
        self._slots = asyncio.Semaphore(CONCURRENT_FILES)
        self._offers: dict[str, asyncio.Task[None]] = {}
        self._offered: set[str] = set()
        self._newest: CheckpointSealed | None = None
        #: Sealed folders that nobody needs any more, to be removed off the event loop.
        self._overtaken: list[str] = []
        self._sending: asyncio.Task[None] | None = None

    async def inherit(self) -> None:
        """Take over the artifacts of earlier attempts that are too many for the record.

        They are read once and listed anew: what an attempt that lost its process stores after that
        does not count. Idempotent.

        Raises:
            UploadFailed: the store refused it all along.
        """
        if self._inherited:
            return
        before = self._attempt - 1
        files = await self._patiently(lambda: read_manifest(self._store, self._process_id, before))
        self._take_over(files)
        self._inherited = True
        await self._write_list(running_key(self._process_id, self._attempt), complete=False)

    async def keep_manifest(self, seconds: float) -> None:
        """While the job runs, list artifacts that are too many for the record, now and then."""
        listed = self._total_bytes
        while True:
            await asyncio.sleep(seconds)
            if self.inline_files() is None and self._total_bytes != listed:
                listed = self._total_bytes
                key = running_key(self._process_id, self._attempt)
                with suppress(UploadFailed, LeaseLost):  # the next list, or the manifest, says it
                    await self._write_list(key, complete=False)

    def _take_over(self, files: Iterable[ArtifactFile]) -> None:
        for file in files:
            self._others[file.path] = file
            self._total_bytes += file.size

    def offer(self, path: str) -> None:
        """Send an artifact now, by the path that callers see. If that fails, `finish` tells.

        A file with several names waits for `finish`.
        """
        if len(self._offered) < MAX_OFFERED:
            self._offered.add(path)
        if path in self._offered and path not in self._offers:
            task = asyncio.create_task(self._send_offered(path))
            self._offers[path] = task
            task.add_done_callback(lambda _: self._offers.pop(path, None))

    def seal(self, sealed: CheckpointSealed) -> None:
        """Send a checkpoint, after the one that is on its way; an older one waiting is dropped."""
        if self._newest is not None:
            self._overtaken.append(self._newest.path)
        self._newest = sealed
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_checkpoints())

    async def checkpoints_stored(self) -> None:
        """Return once no checkpoint is waiting or on its way."""
        while self._sending is not None and not self._sending.done():
            await asyncio.wait([self._sending])

    async def finish(self) -> None:
        """Send whatever lies in the output folder and is not stored as it is now.

        An entry that is refused costs itself and nothing else. The job must have ended.

        Raises:
            UploadFailed: something could not be stored.
        """
        while self._offers:
            await asyncio.wait(list(self._offers.values()))
        listing = await asyncio.to_thread(self._folder.listing, OUTPUTS, MAX_ARTIFACTS)
        count = await asyncio.to_thread(self._folder.names_at_end) if listing.linked else NO_LINKS
        self._refused, files = listing.refused, [*map(shown, listing.files)]
        await self._send_all(files, count)
        for gone in set(self._stored) - set(files):
            self._forget_artifact(gone)

    async def _send_all(self, paths: list[str], count: NameCount) -> None:
        """Send all of them. Raises the first failure once the others had a chance to arrive."""
        left, failed = iter(paths), asyncio.get_running_loop().create_future()

        async def send_next() -> None:
            for path in left:
                try:
                    await self._send(path, count)
                except Exception as error:  # noqa: BLE001 - raised below
                    if not failed.done():
                        failed.set_result(error)

        senders = asyncio.gather(*(send_next() for _ in range(CONCURRENT_FILES)))
        try:
            await asyncio.wait([senders, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await asyncio.wait([senders], timeout=LAST_CHANCE_SECONDS)
                raise failed.result()
        finally:
            senders.cancel()
            await asyncio.gather(senders, return_exceptions=True)

    async def store_stream(
        self, path: str, begin: Callable[[], Awaitable[Content]], on_progress: OnProgress
    ) -> None:
        """Store an artifact that is no file here. `begin` is called anew for each try.

        `on_progress(bytes so far, bytes in all)` is called on the event loop.

        Raises:
            UploadFailed: it could not be stored. Also what `chunks` raises.
        """
        key = artifact_key(self._process_id, self._attempt, path)
        content_type = _content_type(path)

        async def send() -> FileFacts:
            content, sent = await begin(), 0
            self._check_room(path, content.size)

            def passed(count: int) -> None:
                nonlocal sent
                sent += count
                self._moved_at = time.monotonic()
                on_progress(sent, content.size)

            return await self._store.upload_stream(
                content.chunks(),
                key,
                size=content.size,
                content_type=content_type,
                on_bytes=passed,
            )

        facts = await self._patiently(send)
        self._forget_artifact(path)
        self._others[path] = self._artifact(path, facts, content_type)
        self._total_bytes += facts.size

    async def write_manifest(self, *, complete: bool) -> None:
        """Say in the store what is there; for `complete`, the commit point of the process."""
        await self._write_list(manifest_key(self._process_id, self._attempt), complete=complete)

    async def _write_list(self, key: str, *, complete: bool) -> None:
        manifest = Manifest(
            process_id=self._process_id,
            attempt=self._attempt,
            complete=complete,
            files=tuple(self.files()),
            refused_count=self._refused.count,
            refused=self._refused.listed,
        )
        data = manifest.model_dump_json().encode()
        await self._patiently(lambda: self._store.put(key, data, content_type="application/json"))

    def summary(self) -> ArtifactsSummary:
        """Called for every chunk, so it uses running totals."""
        return ArtifactsSummary(
            count=len(self._stored) + len(self._others),
            total_bytes=self._total_bytes,
            sent_bytes=self._sent_bytes,
            refused_count=self._refused.count,
            refused=self._refused.listed,
        )

    def files(self) -> list[ArtifactFile]:
        """What is stored so far, by path."""
        files = [*self._others.values(), *(file for _, file in self._stored.values())]
        return sorted(files, key=lambda file: file.path)

    def _forget_artifact(self, path: str) -> None:
        """Before another takes its path, also one of an earlier attempt."""
        if path in self._stored:
            self._total_bytes -= self._stored.pop(path)[1].size
        if path in self._others:
            self._total_bytes -= self._others.pop(path).size

    def _artifact(self, path: str, facts: FileFacts, content_type: str) -> ArtifactFile:
        return ArtifactFile(
            path=path,
            size=facts.size,
            sha256=facts.sha256,
            content_type=content_type,
            attempt=self._attempt,
        )

    def inline_files(self) -> tuple[ArtifactFile, ...] | None:
        """`files` for the record; None: they are too many."""
        few = self._inherited and len(self._stored) + len(self._others) <= MAX_FILES_INLINE
        return tuple(self.files()) if few else None

    def _report(self) -> None:
        summary, files = self.summary(), self.inline_files()
        self._lease.report(lambda record: record.with_artifacts(summary).with_files(files))

    def _count(self, sent: int) -> None:
        """Counts sent bytes, so a long upload shows progress."""
        self._sent_bytes += sent
        self._moved_at = time.monotonic()
        self._lease.report(lambda record: record.with_artifacts(self.summary()))

    async def close(self) -> None:
        """Stop whatever is still on its way."""
        tasks = [*self._offers.values(), *([self._sending] if self._sending else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_offered(self, path: str) -> None:
        try:
            await self._send(path)
        except (WorkerError, OSError) as error:
            log.warning("artifact %s did not go up yet: %s", path, error)

    async def _send(self, path: str, count: NameCount | None = None) -> None:
        try:
            async with self._slots, self._opened(f"{OUTPUTS}/{on_disk(path)}", count) as source:
                state = state_of(source)
                if path in self._stored and self._stored[path][0] == state:
                    return
                more = self._check_room(path, state.size)
                self._under_way += more
                try:
                    file = await self._store_file(source, path)
                finally:
                    self._under_way -= more
        except FileRefused as error:
            self._refuse(path, str(error))
        except (ChecksumMismatch, FileNotFoundError) as error:
            raise UploadFailed(f"artifact {path!r} could not be stored: {error}") from error
        else:
            self._forget_artifact(path)
            self._stored[path] = (state, file)
            self._total_bytes += file.size
        self._report()

    def _check_room(self, path: str, size: int) -> int:
        """How many bytes more the process will have stored: a path that is sent again counts once.

        Raises OutputTooLarge, before a byte is sent: a sparse file may say that it has a TB.
        """
        stored = self._stored[path][1] if path in self._stored else self._others.get(path)
        before = stored.size if stored else 0
        others = self._total_bytes + self._under_way - before
        if others + size > self._max_bytes:
            raise OutputTooLarge(
                f"artifact {path!r} has {size} bytes: with the {others} bytes of the others, the "
                f"process would store more than WORKER_MAX_OUTPUT_BYTES ({self._max_bytes})"
            )
        return max(0, size - before)

    def _refuse(self, path: str, reason: str) -> None:
        self._refused.add(path, reason)
        if path in self._stored:
            self._forget_artifact(path)

    async def _store_file(self, source: FileIO, path: str) -> ArtifactFile:
        key = artifact_key(self._process_id, self._attempt, path)
        content_type = _content_type(path)
        facts = await self._patiently(
            lambda: upload_file(
                self._store, source, key, content_type=content_type, on_bytes=self._count
            )
        )
        return self._artifact(path, facts, content_type)

    @asynccontextmanager
    async def _opened(self, path: str, count: NameCount | None) -> AsyncIterator[FileIO]:
        """As `OwnFolder.open`, off the event loop, and closed in the end."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._folder.open, path, count))
        try:
            file = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        with file:
            yield file

    async def _send_checkpoints(self) -> None:
        while self._newest is not None:
            sealed, self._newest = self._newest, None
            try:
                await self._send_checkpoint(sealed)
            except (WorkerError, OSError) as error:
                # The job goes on: its next checkpoint may fare better, and the last one still is.
                log.warning("checkpoint %d was not stored: %s", sealed.seq, error)
            finally:
                self._overtaken.append(sealed.path)
                while self._overtaken:
                    await asyncio.to_thread(self._folder.remove, self._overtaken.pop())

    async def _send_checkpoint(self, sealed: CheckpointSealed) -> None:
        listing = await asyncio.to_thread(self._folder.listing, sealed.path, MAX_CHECKPOINT_FILES)
        if listing.refused.count or not listing.files:
            odd = "; ".join(f"{each.path}: {each.reason}" for each in listing.refused.listed)
            log.warning("checkpoint %d is not kept: %s", sealed.seq, odd or "it is empty")
            return
        checkpoint = Checkpoint(attempt=self._attempt, seq=sealed.seq, files=())
        folder, names = sealed.path, self._folder.names_while_job_lives
        count = await asyncio.to_thread(names) if listing.linked else NO_LINKS
        files: list[CheckpointFile] = []
        room = int(self._max_bytes)
        for path in listing.files:
            files.append(await self._send_part(checkpoint, folder, path, count, room))
            room -= files[-1].size
        checkpoint = checkpoint.model_copy(update={"files": tuple(files)})
        before = self._lease.desired.checkpoints
        after = (await self._lease.change(lambda r: r.with_checkpoint(checkpoint))).checkpoints
        await self._forget([old for old in before if old not in after])

    async def _send_part(
        self, checkpoint: Checkpoint, folder: str, path: str, count: NameCount, room: int
    ) -> CheckpointFile:
        key = checkpoint_key(self._process_id, checkpoint, shown(path))
        async with self._opened(f"{folder}/{path}", count) as source:
            state = state_of(source)
            if state.size > room:
                raise OutputTooLarge(
                    f"with the {state.size} bytes of {path!r} it would hold more than "
                    f"WORKER_MAX_OUTPUT_BYTES ({self._max_bytes})"
                )
            facts = await self._patiently(lambda: upload_file(self._store, source, key))
        return CheckpointFile(
            path=shown(path), size=facts.size, sha256=facts.sha256, modified_ns=state.modified_ns
        )

    async def _forget(self, checkpoints: list[Checkpoint]) -> None:
        """Remove files that no record mentions any more; what stays is retention's."""
        keys = [
            checkpoint_key(self._process_id, checkpoint, file.path)
            for checkpoint in checkpoints
            for file in checkpoint.files
        ]
        try:
            if keys:
                await self._store.delete(keys)
        except StorageFailure as error:
            log.warning("an old checkpoint was not removed: %s", error)

    async def _patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        """`send` until the store takes it: nobody loses a job to an outage that ends.

        Patience ends when the store has taken no byte of anything for so long.
        """
        began = time.monotonic()
        while True:
            if self._lease.lost.is_set():
                raise LeaseLost("nothing more is stored by an attempt that lost its process")
            try:
                sent = await send()
            except StorageFailure as error:
                if time.monotonic() - max(began, self._moved_at) >= self._patience_seconds:
                    raise UploadFailed(f"the store refused it all along: {error}") from error
                log.warning("the store is away, an upload waits: %s", error)
                self._tell_trouble(Trouble(code=error.code, message=str(error)))
                await asyncio.sleep(1)
            else:
                self._tell_trouble(None)
                return sent

    def _tell_trouble(self, trouble: Trouble | None) -> None:
        if self._lease.desired.trouble != trouble:
            self._lease.report(lambda record: record.with_trouble(trouble))


def _content_type(path: str) -> str:
    return mimetypes.guess_type(path)[0] or "application/octet-stream"


def _close_opened(opening: asyncio.Future[FileIO]) -> None:
    """Close a file that its caller, who was cancelled, does not get."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
