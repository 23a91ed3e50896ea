"""One zip of many processes' artifacts, streamed from the store into the store.

Writing one is itself a process: it has a record, progress, a cancel, an end, and its zip is its
artifact. But no child: the worker does it, because only the worker may see the store.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from pydantic import BaseModel, JsonValue
from zipstream import ZIP_STORED, ZipStream

from attempts.uploads import OnProgress, Uploads
from records.index import ARCHIVES, age_key
from records.lease import until_answered
from records.manifest import Manifests, artifact_key, choose
from records.reading import RecordUnreadable, UnknownProcess, read_record
from records.record import Record
from storage import ObjectNotFound, Store
from utils import WorkerError

#: The kind of such a process, and its one artifact.
ARCHIVE, ARCHIVE_PATH = "archive", "archive.zip"
#: Bytes of one read, and how many are on their way: 8 MiB at most, and small files come fast.
READ_BYTES, READS_AHEAD = 2 << 20, 4
#: More would need too much memory for a zip's directory: some 500 bytes each.
MAX_FILES = 100_000


def archive_row(record: Record) -> str:
    """The key of the row by which an archive is found when it is old."""
    return age_key(ARCHIVES, record.process_id, record.created_at)


class ArchiveFailed(WorkerError):
    """An artifact that was to be archived is gone, or not what its manifest says."""

    code = "archive_failed"
    retryable = True


class NothingToArchive(WorkerError):
    """No file of these processes can be archived, or too many."""

    code = "nothing_to_archive"


class ArchiveParams(BaseModel, frozen=True):
    """What to archive."""

    process_ids: list[str]
    pattern: str | None = None


class ZipEntry(NamedTuple):
    """A file of the zip to be."""

    name: str
    key: str
    size: int
    #: None while its process goes on.
    sha256: str | None


class ReadBlock(NamedTuple):
    """A stretch of `READ_BYTES` of an object, or what is left of it."""

    key: str
    offset: int


class ArchiveContents(NamedTuple):
    """What goes into the zip."""

    entries: list[ZipEntry]
    #: Processes of which nothing can be archived, and why: told, and no reason to leave out others.
    left_out: dict[str, str]

    def summary(self) -> dict[str, JsonValue]:
        return {
            "files": len(self.entries),
            "bytes": sum(entry.size for entry in self.entries),
            "left_out": {**self.left_out},
        }


class Archiver:
    """Writes archives for one worker."""

    def __init__(self, store: Store, manifests: Manifests, patience_seconds: float) -> None:
        self._store = store
        self._manifests = manifests
        self._patience_seconds = patience_seconds

    async def write(
        self, record: Record, uploads: Uploads, params: ArchiveParams, on_progress: OnProgress
    ) -> JsonValue:
        """Store the zip as an artifact; the process's result is a summary of its content.

        First the row by which it is found when it is old.

        Raises:
            NothingToArchive, ArchiveFailed: as their names say.
            UploadFailed: the store did not take it.
        """
        try:
            async with asyncio.timeout(self._patience_seconds):
                row = archive_row(record)
                await until_answered(lambda: self._store.put(row, b""))
                contents = await until_answered(lambda: self._gather(params))
        except TimeoutError:
            raise ArchiveFailed("the store did not say what there is to archive") from None

        async def begin() -> ArchiveStream:
            loop = asyncio.get_running_loop()
            return await asyncio.to_thread(
                ArchiveStream, self._store, self._patience_seconds, contents.entries, loop
            )

        await uploads.store_stream(ARCHIVE_PATH, begin, on_progress)
        return contents.summary()

    async def _gather(self, params: ArchiveParams) -> ArchiveContents:
        """The files of the processes, in the order in which those were named.

        Raises:
            NothingToArchive: there are none, or more files than one zip should have.
        """
        found = await asyncio.gather(
            *(self._look(process_id, params.pattern) for process_id in params.process_ids)
        )
        named = list(zip(params.process_ids, found, strict=True))
        contents = ArchiveContents(
            [entry for _, entries in named if isinstance(entries, list) for entry in entries],
            {process_id: why for process_id, why in named if isinstance(why, str)},
        )
        if not contents.entries:
            why = ", ".join(f"{name}: {reason}" for name, reason in contents.left_out.items())
            raise NothingToArchive(f"there is nothing to archive ({why})")
        if len(contents.entries) > MAX_FILES:
            raise NothingToArchive(
                f"{len(contents.entries)} files are more than the {MAX_FILES} of one archive; "
                "choose fewer processes, or give a `pattern`"
            )
        return contents

    async def _look(self, process_id: str, pattern: str | None) -> list[ZipEntry] | str:
        """The files of one process, or the reason why there are none."""
        try:
            record = await read_record(self._store, process_id)
        except UnknownProcess:
            return "not_found"
        except RecordUnreadable:
            return "unreadable"
        if not record.released:  # its files may change while they are read
            return record.status.value
        artifacts = choose(await self._manifests.artifacts(record), pattern)
        if not artifacts:
            return "no such files"
        return [
            ZipEntry(
                f"{process_id}/{artifact.path}",
                artifact_key(process_id, artifact.attempt, artifact.path),
                artifact.size,
                artifact.sha256,
            )
            for artifact in artifacts
        ]


class ArchiveStream:
    """The bytes of a zip, not compressed (images and weights do not shrink), and their number."""

    def __init__(
        self,
        store: Store,
        patience_seconds: float,
        entries: list[ZipEntry],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Best made in a thread: 10,000 entries take 80 ms. The store is asked in `loop`."""
        self._store = store
        self._patience_seconds = patience_seconds
        self._loop = loop
        self._plan = (
            ReadBlock(entry.key, offset)
            for entry in entries
            for offset in range(0, entry.size, READ_BYTES)
        )
        #: Under way, in the order of the plan; a thread waits for the first.
        self._reads: deque[Future[bytes]] = deque()
        self._zip = ZipStream(compress_type=ZIP_STORED, sized=True)
        for entry in entries:
            self._zip.add(self._content(entry), entry.name, size=entry.size)
        self.size = len(self._zip)

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it, once.

        Raises:
            ArchiveFailed: an artifact is gone, or not what it should be.
        """
        source = iter(self._zip)
        step: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                # In a thread: checksums take time, and the zip waits for what it reads.
                step = asyncio.create_task(asyncio.to_thread(next, source, None))
                chunk = await asyncio.shield(step)
                if chunk is None:
                    return
                yield chunk
        finally:
            for read in list(self._reads):
                read.cancel()
            if step is not None:
                # not for long: what its thread waits for is cancelled
                await asyncio.gather(step, return_exceptions=True)

    def _content(self, entry: ZipEntry) -> Iterator[bytes]:
        """In a thread: the bytes of one file, checked before the last of them is let go."""
        digest = hashlib.sha256()
        for offset in range(0, entry.size, READ_BYTES):
            data = self._next_block(entry)
            if len(data) != min(READ_BYTES, entry.size - offset):
                raise ArchiveFailed(f"{entry.name!r} is not of the size that was announced")
            digest.update(data)
            yield data
        if entry.sha256 not in (None, digest.hexdigest()):
            raise ArchiveFailed(f"{entry.name!r} has another sha256 than its manifest says")

    async def _read(self, block: ReadBlock) -> bytes:
        """Only what the store did not answer is read anew, not a terabyte before it."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await until_answered(
                    lambda: self._store.get_range(block.key, offset=block.offset, length=READ_BYTES)
                )
        except TimeoutError:
            raise ArchiveFailed("the store did not answer any more") from None

    def _next_block(self, entry: ZipEntry) -> bytes:
        """The zip asks for its blocks in the order of the plan, so they are read ahead in it."""
        while len(self._reads) < READS_AHEAD and (block := next(self._plan, None)):
            self._reads.append(asyncio.run_coroutine_threadsafe(self._read(block), self._loop))
        try:
            return self._reads[0].result()
        except ObjectNotFound:
            raise ArchiveFailed(f"{entry.name!r} is not there any more") from None
        finally:
            self._reads.popleft()
