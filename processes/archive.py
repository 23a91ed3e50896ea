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

from processes.manifest import Artifact, artifact_key, choose
from processes.reading import UnknownProcess, read_record
from processes.record import Record
from processes.worker import Worker
from storage import ObjectNotFound, Store
from utils import WorkerError

#: The kind of such a process, and its one artifact.
ARCHIVE, ARCHIVE_PATH = "archive", "archive.zip"
#: Bytes of one read, and how many are on their way: 16 MiB at most, and small files come fast.
READ_BYTES, READS_AHEAD = 2 << 20, 8


class ArchiveFailed(WorkerError):
    """An artifact that was to be archived is gone, or not what its manifest says."""

    code = "archive_failed"
    retryable = True


class ArchiveParams(BaseModel, frozen=True):
    """What to archive."""

    process_ids: list[str]
    pattern: str | None = None


class Member(NamedTuple):
    """A file of the zip to be."""

    name: str
    key: str
    size: int
    #: None while its process goes on.
    sha256: str | None


class Block(NamedTuple):
    """A stretch of `READ_BYTES` of an object, or what is left of it."""

    key: str
    offset: int


class Contents(NamedTuple):
    """What goes into the zip."""

    members: list[Member]
    #: Ids that no process has: told, and no reason not to archive the others.
    not_found: list[str]

    def summary(self) -> dict[str, JsonValue]:
        return {
            "files": len(self.members),
            "bytes": sum(member.size for member in self.members),
            "not_found": [*self.not_found],
        }


async def gather_contents(worker: Worker, params: ArchiveParams) -> Contents:
    """What the processes have to show now, in the order in which they were named."""

    async def look(process_id: str) -> list[Member] | None:
        try:
            record = await read_record(worker.store, process_id)
        except UnknownProcess:
            return None
        artifacts = await worker.manifests.artifacts(record)
        return [
            _member(record, each) for each in choose(artifacts, path=None, pattern=params.pattern)
        ]

    found = await asyncio.gather(*map(look, params.process_ids))
    return Contents(
        [member for members in found for member in members or ()],
        [name for name, members in zip(params.process_ids, found, strict=True) if members is None],
    )


class ArchiveStream:
    """The bytes of a zip, not compressed (images and weights do not shrink), and their number."""

    def __init__(self, store: Store, members: list[Member]) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._plan = (
            Block(member.key, offset)
            for member in members
            for offset in range(0, member.size, READ_BYTES)
        )
        #: Under way, in the order of the plan; a thread waits for the first.
        self._reads: deque[Future[bytes]] = deque()
        self._zip = ZipStream(compress_type=ZIP_STORED, sized=True)
        for member in members:
            self._zip.add(self._content(member), member.name, size=member.size)
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
                await asyncio.wait([step])  # not for long: what its thread waits for is cancelled

    def _content(self, member: Member) -> Iterator[bytes]:
        """In a thread: the bytes of one file, checked before the last of them is let go."""
        digest = hashlib.sha256()
        for offset in range(0, member.size, READ_BYTES):
            data = self._next_block(member)
            if len(data) != min(READ_BYTES, member.size - offset):
                raise ArchiveFailed(f"{member.name!r} is not of the size that was announced")
            digest.update(data)
            yield data
        if member.sha256 not in (None, digest.hexdigest()):
            raise ArchiveFailed(f"{member.name!r} has another sha256 than its manifest says")

    def _next_block(self, member: Member) -> bytes:
        """The zip asks for its blocks in the order of the plan, so they are read ahead in it."""
        while len(self._reads) < READS_AHEAD and (block := next(self._plan, None)):
            read = self._store.get_range(block.key, offset=block.offset, length=READ_BYTES)
            self._reads.append(asyncio.run_coroutine_threadsafe(read, self._loop))
        try:
            return self._reads[0].result()
        except ObjectNotFound:
            raise ArchiveFailed(f"{member.name!r} is not there any more") from None
        finally:
            self._reads.popleft()


def _member(record: Record, artifact: Artifact) -> Member:
    return Member(
        f"{record.process_id}/{artifact.path}",
        artifact_key(record.process_id, record.attempt, artifact.path),
        artifact.size,
        artifact.sha256,
    )
