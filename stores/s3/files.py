"""Files and streams to and from a bucket, in parts, many at once, hashed in order as they pass.

boto3's own s3transfer is not used. It hashes nothing, its downloads write parts in any order, so
that hashing needs a second pass, and a transfer that is cancelled cannot be waited for.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from storage import ChecksumMismatch, FileFacts, StorageUnavailable
from stores.s3.errors import PreconditionRefused
from stores.s3.near_end import Digest, Source, Target
from stores.s3.stopping import Stop
from stores.s3.threads import STOPPING, Lane, retrying
from stores.streams import check_size
from utils import WorkerError, together

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from stores.s3.bucket import Bucket, Bytes, Range

    #: Parts of an upload, hashed; True with the last.
    Parts = AsyncGenerator[tuple[Bytes, bool], None]

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Bytes. Large enough that a request's overhead is small, small enough to repeat lightly.
PART = 8 << 20
#: Bytes. A file that is no larger takes one turn of one thread, and waits for no room.
SMALL = 1 << 20
#: S3 takes no more; a file beyond 80 GB goes in larger ones.
MAX_PARTS = 10_000
#: Requests under way at a time. Most of their time is the way to the store and back.
REQUESTS = 16
#: Parts in memory, of all transfers together: 48 MiB, and what is on its way in sockets.
PARTS_HELD = 6
#: Parts in memory of each stream, beside those: one is collected while two are on their way.
STREAM_PARTS = 3
#: Threads that read large files and hash them: a disk is one.
DISK_THREADS = 2
#: Seconds. How long a request is tried anew.
PATIENCE = 30.0
#: glibc's `M_MMAP_THRESHOLD` (malloc.h), and the size in bytes from which buffers are mapped.
_MMAP_THRESHOLD, _MAPPED_FROM = -3, 1 << 20


def part_size(size: int) -> int:
    """Of each part but the last of a file with `size` bytes: R2 takes no others than equal ones."""
    return max(PART, math.ceil(size / MAX_PARTS))


def return_freed_buffers() -> None:
    """Let malloc give every large buffer back to the system as soon as it is freed.

    glibc raises its threshold to the largest buffer freed so far. Parts then come from the arenas
    of some twenty threads, which keep them: an archive took 58 to 68 MiB, and 40 MiB with this.
    """
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _MAPPED_FROM)


class Transfers:
    """Uploads and downloads of one bucket, by full keys; they share threads and memory."""

    def __init__(self, bucket: Bucket, patience: float = PATIENCE) -> None:
        return_freed_buffers()
        self.bucket = bucket
        self.patience = patience
        self.network = Lane("s3-files", REQUESTS)
        self.disk = Lane("s3-disk", DISK_THREADS)
        self.aborts = ThreadPoolExecutor(2, "s3-aborts")
        self._room = asyncio.Semaphore(PARTS_HELD)

    def close(self) -> None:
        """Take no more transfers. Parts are still thrown away."""
        self.network.close()
        self.disk.close()
        self.aborts.shutdown(wait=False)

    async def run(self, call: Callable[[], T]) -> T:
        """The result of one request about a file, with a transfer's patience."""
        return await retrying(lambda: self.network.run(call), self.patience)

    async def upload(
        self, file: BinaryIO, key: str, content_type: str | None, on_bytes: Callable[[int], None]
    ) -> FileFacts:
        """As `Store.upload`."""
        with _Upload(self, self._room, key, on_bytes, content_type) as upload:
            source = Source(file)
            if source.size <= SMALL:
                return await upload.put_small(source)
            await upload.send(upload.file_parts(source))
            return upload.digest.facts

    async def upload_stream(
        self,
        chunks: AsyncIterator[bytes],
        key: str,
        size: int,
        content_type: str | None,
        on_bytes: Callable[[int], None],
    ) -> FileFacts:
        """As `Store.upload_stream`. Does not close `chunks`."""
        # In room of its own: a slow stream keeps no other transfer waiting, and may even be made
        # from one.
        room = asyncio.Semaphore(STREAM_PARTS)
        with _Upload(self, room, key, on_bytes, content_type) as upload:
            await upload.send(upload.stream_parts(chunks, size))
            return upload.digest.facts

    async def download(
        self, key: str, path: Path, expected: FileFacts | None, on_bytes: Callable[[int], None]
    ) -> FileFacts:
        """As `Store.download`."""
        with _Download(self, self._room, key, on_bytes) as download:
            target = Target(path, download.digest)
            try:
                await download.run(target, expected)
            finally:
                if not target.ended:
                    await download.on_disk(target.discard)
            return download.digest.facts


class _Transfer:
    """The room a transfer takes, how to stop it, and its progress."""

    def __init__(
        self,
        shared: Transfers,
        room: asyncio.Semaphore,
        key: str,
        on_bytes: Callable[[int], None],
        content_type: str | None = None,
    ) -> None:
        self.digest, self._stop = Digest(), Stop()
        self._shared, self._bucket = shared, shared.bucket
        self._room, self._held = room, 0
        self._key, self._content_type = key, content_type
        self._on_bytes = on_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._held:
            self._give()

    async def take(self) -> None:
        """Wait for room for one part."""
        await self._room.acquire()
        self._held += 1

    def _give(self) -> None:
        self._held -= 1
        self._room.release()

    def passed(self, count: int) -> None:
        """A part of `count` bytes has arrived; its room is free again."""
        self._give()
        self._on_bytes(count)

    async def on_disk(self, call: Callable[[], T]) -> T:
        return await self._shared.disk.run_to_end(call, self._stop)

    async def tried(self, call: Callable[[], T]) -> T:
        """The request that broke is made anew, but not for a transfer that was stopped."""

        def unless_stopped() -> T:
            self._stop.check()
            return call()

        run = self._shared.network.run_to_end
        return await retrying(lambda: run(unless_stopped, self._stop), self._shared.patience)


class _Upload(_Transfer):
    async def put_small(self, source: Source) -> FileFacts:
        """A file that is read, hashed and sent in one turn of a thread."""

        def put() -> FileFacts:
            data, digest = source.read(0, source.size), Digest()
            digest.update(data)
            self._put(data, digest.facts.sha256)
            return digest.facts

        facts = await self.tried(put)
        self._on_bytes(facts.size)
        return facts

    def _put(self, data: Bytes, sha256: str) -> None:
        self._bucket.put_file(self._key, data, self._content_type, sha256, self._stop)

    async def file_parts(self, source: Source) -> Parts:
        size = part_size(source.size)

        def read(offset: int) -> bytes:
            data = source.read(offset, size)
            self.digest.update(data)
            return data

        for offset in range(0, source.size, size):
            await self.take()
            yield await self.on_disk(partial(read, offset)), offset + size >= source.size

    async def stream_parts(self, chunks: AsyncIterator[bytes], size: int) -> Parts:
        """Looks ahead by a chunk, so that the last part is known as such."""
        came, full = 0, part_size(size)
        # Of its full size at once: one that grows takes up to an eighth more.
        part, filled = bytearray(full), 0
        await self.take()
        async for chunk in chunks:
            came += len(chunk)
            check_size(came, size)
            rest = memoryview(chunk)
            while rest:
                if filled == full:
                    await self.on_disk(partial(self.digest.update, part))
                    yield part, False
                    part = bytearray()  # the one before is the request's alone
                    await self.take()
                    part, filled = bytearray(full), 0
                bite = rest[: full - filled]
                part[filled : filled + len(bite)] = bite
                filled += len(bite)
                rest = rest[len(bite) :]
        del part[filled:]
        await self.on_disk(partial(self.digest.update, part))
        yield part, True

    async def send(self, parts: Parts) -> None:
        """One request if the first part is the last, else a multipart upload."""
        async with aclosing(parts):
            data, last = await anext(parts)
            if last:
                await self.tried(partial(self._put, data, self.digest.facts.sha256))
                self.passed(len(data))
                return
            mark, sending = secrets.token_hex(8), list[asyncio.Task[str]]()
            async with self._begun(mark) as upload_id:
                async with together() as group:
                    while True:
                        part = self._send_part(upload_id, len(sending) + 1, data)
                        sending.append(group.create_task(part))
                        del data, part  # held by the request alone
                        if last:
                            break
                        data, last = await anext(parts)
                tags = [task.result() for task in sending]
                await self.tried(partial(self._complete, upload_id, tags, mark))

    async def _send_part(self, upload_id: str, number: int, data: Bytes) -> str:
        put = self._bucket.upload_part
        tag = await self.tried(partial(put, self._key, upload_id, number, data, self._stop))
        self.passed(len(data))
        return tag

    @asynccontextmanager
    async def _begun(self, mark: str) -> AsyncIterator[str]:
        """The id of a multipart upload, which is aborted if this ends with an error."""
        begun: list[str] = []

        def begin() -> None:
            begun.append(self._bucket.begin_upload(self._key, self._content_type, mark))
            if self._stop.is_set():  # and perhaps nothing waits for this thread any more
                self._abort(begun[-1])

        try:
            await self.tried(begin)
            yield begun[-1]
        except BaseException:  # cancelled too: parts left behind cost money, and no list shows them
            self._stop.set()
            loop = asyncio.get_running_loop()
            aborts = [loop.run_in_executor(self._shared.aborts, self._abort, id_) for id_ in begun]
            if aborts:  # a cancelled task does not wait long
                await asyncio.wait(aborts, timeout=STOPPING)
            raise

    def _complete(self, upload_id: str, tags: list[str], mark: str) -> None:
        """Blocking. A lost answer is settled by looking whose object is there."""
        try:
            self._bucket.complete_upload(self._key, upload_id, tags)
        except WorkerError:
            with suppress(WorkerError):
                if self._bucket.mark(self._key) == mark:
                    return
            raise

    def _abort(self, upload_id: str) -> None:
        """Blocking: throw the parts away. Never raises."""
        try:
            try:
                self._bucket.abort_upload(self._key, upload_id)
            except WorkerError:
                time.sleep(STOPPING / 2)
                self._bucket.abort_upload(self._key, upload_id)
        except WorkerError as error:
            log.warning(
                "parts of an unfinished upload stay in the bucket until they are aborted: %s",
                error,
                extra={"key": self._key, "upload_id": upload_id},
            )


class _Download(_Transfer):
    async def run(self, target: Target, expected: FileFacts | None) -> None:
        """For most files the first range is all; then one turn of a thread does everything."""

        def begin() -> Range:
            first = self._bucket.get_range(self._key, 0, SMALL, None, self._stop)
            if expected is not None and first.total != expected.size:
                raise ChecksumMismatch(f"{self._key} has {first.total} bytes, not {expected.size}")
            target.write(first.bites)
            if first.total <= SMALL:
                target.appear(expected)
            return first

        first = await self.tried(begin)
        self._on_bytes(min(SMALL, first.total))
        if first.total > SMALL:
            await self._get_rest(target, first)
            await self.on_disk(partial(target.appear, expected))

    async def _get_rest(self, target: Target, first: Range) -> None:
        """All parts after the first, written and hashed in order while others are on their way."""
        offsets = deque(range(SMALL, first.total, PART))
        coming: deque[asyncio.Task[Range]] = deque()
        async with together() as group:
            while offsets or coming:
                while offsets and len(coming) < PARTS_HELD:
                    coming.append(group.create_task(self._get_part(offsets.popleft(), first)))
                bites = (await coming.popleft()).bites
                await self.on_disk(partial(target.write, bites))
                self.passed(sum(map(len, bites)))

    async def _get_part(self, offset: int, first: Range) -> Range:
        # in the order of the parts: the part that is written next never waits behind a later one
        await self.take()
        get = self._bucket.get_range
        with suppress(PreconditionRefused):
            part = await self.tried(
                partial(get, self._key, offset, PART, first.version, self._stop)
            )
            if part[1:] == first[1:]:  # some stores heed no condition
                return part
        raise StorageUnavailable(f"{self._key} was replaced while it was downloaded")
