"""Files to and from the bucket, in parts, many at once, hashed in order as they pass.

boto3's own s3transfer is not used. It hashes nothing, and its downloads write parts in any order,
so that hashing needs a second pass; told to write in order it waits for itself for ever once a file
has more parts than it may hold (0.19.3, with checksums `when_required`); it repeats broken reads
without a pause, and nobody can wait for it to have stopped.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from storage import ChecksumMismatch, FileFacts, StorageUnavailable
from stores.s3_calls import Lane, retrying
from stores.s3_errors import PreconditionRefused
from stores.s3_files import PART, SMALL, Body, Memory, Source, Stop, Target
from stores.s3_stream import Stream
from utils import WorkerError, together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from stores.s3_requests import Range, S3Requests

T = TypeVar("T")

#: Requests on their way at a time. A small file takes no other room, so that as many pass at once:
#: most of their time is the way to the store and back.
REQUESTS = 16
#: Stretches of files that are read at a time, for archives: each thread keeps as much from malloc.
STRETCHES = 4
#: Parts in memory, of all transfers together: 48 MiB, and what is on its way in sockets.
PARTS_HELD = 6
#: Parts in memory of each stream, beside those: one is collected while two are on their way.
STREAM_PARTS = 3
#: Threads that read large files and hash them: a disk is one.
DISK_THREADS = 2
#: Seconds. How long a part is tried anew, and how long a cancelled transfer may take to stop.
PATIENCE = 30.0
STOPPING = 2.0


class Transfers:
    """Uploads and downloads of one bucket; they share threads and memory."""

    def __init__(self, requests: S3Requests, patience: float = PATIENCE) -> None:
        self._requests = requests
        self._patience = patience
        self._network = Lane("s3-files", REQUESTS)
        self._stretches = Lane("s3-stretches", STRETCHES)
        self._disk = Lane("s3-disk", DISK_THREADS)
        self._memory = Memory(PARTS_HELD)
        self._room = asyncio.Semaphore(PARTS_HELD)

    def close(self) -> None:
        """Take no more transfers."""
        self._network.close()
        self._stretches.close()
        self._disk.close()

    async def upload(
        self, file: BinaryIO, key: str, content_type: str | None, on_bytes: Callable[[int], None]
    ) -> FileFacts:
        """As `Store.upload`, to a full key."""
        source = Source(file, self._memory)
        job = _Job(self._room, self._memory, on_bytes)
        try:
            put = partial(self._put_whole, job, source, key, content_type)
            whole = await self._tried(job, partial(put, SMALL))
            if not whole:
                await job.take()
                whole = await self._tried(job, partial(put, PART))
                job.give(source.whole() if whole else None)
            if whole:
                job.passed(source.size)
            else:
                send = partial(self._send_file, job, source, key)
                await self._put_parts(job, key, content_type, send)
        finally:
            job.stop_all()
        return source.facts

    async def upload_stream(
        self,
        chunks: AsyncIterator[bytes],
        key: str,
        size: int,
        content_type: str | None,
        on_bytes: Callable[[int], None],
    ) -> FileFacts:
        """As `Store.upload_stream`, to a full key. Does not close `chunks`."""
        stream = Stream(chunks, size, self._memory)
        # In room of its own: who makes chunks slowly keeps no other transfer waiting, and may
        # even make them from one.
        job = _Job(asyncio.Semaphore(STREAM_PARTS), self._memory, on_bytes)
        try:
            await self._collect(job, stream)
            if stream.ended:
                await self._put_stream(job, stream, key, content_type)
            else:
                send = partial(self._send_stream, job, stream, key)
                await self._put_parts(job, key, content_type, send)
        finally:
            job.stop_all()
        return stream.facts

    async def run(self, call: Callable[[], T]) -> T:
        """What one request about a file gives, with a transfer's patience."""
        return await retrying(lambda: self._stretches.run(call), self._patience)

    async def download(
        self, key: str, path: Path, expected: FileFacts | None, on_bytes: Callable[[int], None]
    ) -> FileFacts:
        """As `Store.download`, of a full key."""
        target = Target(path)
        job = _Job(self._room, self._memory, on_bytes)
        try:
            first = await self._tried(job, partial(self._get_small, job, key, target, expected))
            job.passed(len(first.data))
            if not target.appeared:
                async with together() as group:
                    await self._rest(job, group, target, key, first)
                await job.run(self._disk, partial(target.appear, expected))
        finally:
            if target.appeared:
                job.stop_all()
            else:
                await job.end(self._disk, target.discard)
        return target.facts

    # ---- up

    def _put_whole(
        self, job: _Job, source: Source, key: str, content_type: str | None, limit: int
    ) -> bool:
        """Blocking: a file in one turn of a thread; False: it has more than `limit` bytes."""
        if source.size > limit:
            return False
        body = Body(source.whole(), job.stop)
        self._requests.put_file(key, body, content_type, source.facts.sha256)
        return True

    async def _put_stream(
        self, job: _Job, stream: Stream, key: str, content_type: str | None
    ) -> None:
        """One that ended with its first part."""
        data, sha256 = stream.take(), stream.facts.sha256
        await self._tried(
            job, lambda: self._requests.put_file(key, Body(data, job.stop), content_type, sha256)
        )
        job.passed(len(data))
        job.give(data)

    async def _put_parts(
        self,
        job: _Job,
        key: str,
        content_type: str | None,
        send: Callable[[str], Awaitable[list[str]]],
    ) -> None:
        """`send` is told the upload's id and gives the tags of its parts."""
        mark = secrets.token_hex(8)
        begun: list[str] = []

        def begin() -> None:
            begun.append(self._requests.begin_upload(key, content_type, mark))

        try:
            await self._tried(job, begin)
            tags = await send(begun[0])
            await self._complete(job, key, begun[0], tags, mark)
        except BaseException:  # cancelled too: parts left behind cost money, and no list shows them
            for upload_id in begun:
                await self._abort(key, upload_id)
            raise

    async def _send_file(self, job: _Job, source: Source, key: str, upload_id: str) -> list[str]:
        """Parts are read one after the other, while those before are on their way."""
        sending: list[asyncio.Task[str]] = []
        async with together() as group:
            for number in range(1, source.parts + 1):
                await job.take()
                data = await job.run(self._disk, source.read)
                sending.append(group.create_task(self._send(job, key, upload_id, number, data)))
        await job.run(self._disk, source.verify)
        return [task.result() for task in sending]

    async def _send_stream(self, job: _Job, stream: Stream, key: str, upload_id: str) -> list[str]:
        """The first part has been collected; the others are, while those before are under way."""
        sending: list[asyncio.Task[str]] = []
        async with together() as group:
            while True:
                part = self._send(job, key, upload_id, len(sending) + 1, stream.take())
                sending.append(group.create_task(part))
                if stream.ended:
                    break
                await self._collect(job, stream)
        return [task.result() for task in sending]

    async def _collect(self, job: _Job, stream: Stream) -> None:
        await job.take()
        await stream.collect()
        await job.run(self._disk, stream.hash)

    async def _send(
        self, job: _Job, key: str, upload_id: str, number: int, data: memoryview
    ) -> str:
        tag = await self._tried(
            job,
            lambda: self._requests.upload_part(key, upload_id, number, Body(data, job.stop)),
        )
        job.passed(len(data))
        job.give(data)
        return tag

    async def _complete(
        self, job: _Job, key: str, upload_id: str, tags: list[str], mark: str
    ) -> None:
        """A lost answer is settled by looking whose object is there."""

        def complete() -> None:
            try:
                self._requests.complete_upload(key, upload_id, tags)
            except WorkerError:
                with suppress(WorkerError):
                    if self._requests.mark(key) == mark:
                        return
                raise

        await self._tried(job, complete)

    async def _abort(self, key: str, upload_id: str) -> None:
        """Throw the parts away, if that can be done soon: a cancelled task does not wait long."""
        abort = partial(self._requests.abort_upload, key, upload_id)
        with suppress(WorkerError, TimeoutError):
            async with asyncio.timeout(STOPPING):
                await retrying(lambda: self._network.run(abort), STOPPING)

    # ---- down

    def _get_small(self, job: _Job, key: str, target: Target, expected: FileFacts | None) -> Range:
        """Blocking: the first bytes, which for most files are all; then the file has its name."""
        first = self._requests.get_range(key, 0, SMALL, None, job.stop, self._memory)
        if expected is not None and first.total != expected.size:
            raise ChecksumMismatch(f"{key} has {first.total} bytes, not {expected.size}")
        target.write(first.data, 0)
        target.hash(first.data)
        if first.total == len(first.data):
            target.appear(expected)
        return first

    async def _rest(
        self, job: _Job, group: asyncio.TaskGroup, target: Target, key: str, first: Range
    ) -> None:
        """All parts after the first: written as they come, hashed in order."""
        offsets = deque(range(len(first.data), first.total, PART))
        coming: deque[asyncio.Task[Range]] = deque()
        while offsets or coming:
            # never wait for room while holding some: that could be waiting for oneself
            if offsets and not (coming and self._room.locked()):
                await job.take()
                fetch = self._range(job, target, key, offsets.popleft(), first)
                coming.append(group.create_task(fetch))
            else:
                await self._keep(job, target, await coming.popleft())

    async def _range(self, job: _Job, target: Target, key: str, offset: int, first: Range) -> Range:
        fetch = partial(self._fetch, job, target, key, offset, first.version)
        with suppress(PreconditionRefused):
            part = await self._tried(job, fetch)
            if part[1:] == first[1:]:  # some stores heed no condition
                return part
        raise StorageUnavailable(f"{key} was replaced while it was downloaded")

    def _fetch(
        self, job: _Job, target: Target, key: str, offset: int, version: str | None
    ) -> Range:
        """Blocking: a part; its bytes go to the disk while they are in the core's cache."""
        failures: list[OSError] = []

        def write(data: memoryview, at: int) -> None:
            try:
                if not failures:
                    target.write(data, at)
            except OSError as failure:
                failures.append(failure)

        part = self._requests.get_range(key, offset, PART, version, job.stop, self._memory, write)
        if failures:  # the disk's, not the store's, which has given all
            raise failures.pop()
        return part

    async def _keep(self, job: _Job, target: Target, part: Range) -> None:
        await job.run(self._disk, partial(target.hash, part.data))
        job.passed(len(part.data))
        job.give(part.data)

    async def _tried(self, job: _Job, call: Callable[[], T]) -> T:
        """Only the request that broke is made anew, and none for whom nobody waits any more."""

        def unless_stopped() -> T:
            job.stop.check()
            return call()

        return await retrying(lambda: job.run(self._network, unless_stopped), self._patience)


class _Job:
    """One transfer: the room it takes, how to stop it, whom to tell."""

    def __init__(
        self, room: asyncio.Semaphore, memory: Memory, on_bytes: Callable[[int], None]
    ) -> None:
        self.stop = Stop()
        self._room = room
        self._memory = memory
        memory.enter()
        self._held = 0
        self._on_bytes = on_bytes

    async def take(self) -> None:
        """Wait for room for one part."""
        await self._room.acquire()
        self._held += 1

    def give(self, part: memoryview | None = None) -> None:
        """That room is free again, and the memory of the part that was in it."""
        self._held -= 1
        self._room.release()
        if part is not None:
            self._memory.take_back(part)

    def passed(self, count: int) -> None:
        """That many more bytes have arrived where they go."""
        self._on_bytes(count)

    async def run(self, lane: Lane, call: Callable[[], T]) -> T:
        """What `call` returns. When cancelled, stops the job and waits until the call has ended,
        so that nothing still reads or writes a file that its owner believes to be free."""
        work = asyncio.ensure_future(lane.run(call))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.stop.set()
            work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            await asyncio.wait({work}, timeout=STOPPING)
            raise
        finally:
            del work  # what it raised leads to this frame, and would to itself

    def stop_all(self) -> None:
        """However it went: nothing of it goes on, nothing stays held."""
        self.stop.set()
        while self._held:
            self.give()
        self._memory.leave()

    async def end(self, lane: Lane, close: Callable[[], None]) -> None:
        """As `stop_all`, and nothing stays open."""
        self.stop_all()
        await self.run(lane, close)
