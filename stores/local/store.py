"""A store in a folder: the default without a bucket, and at home on a network volume.

What keeps it whole among many workers is said in `objects`; here it is kept off the event
loop.
"""

# ruff: noqa: ARG002 - the contract passes some things that a folder has no use for
from __future__ import annotations

import asyncio
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, ParamSpec, TypeVar

from storage import (
    MAX_PAGE,
    Capabilities,
    FileFacts,
    FolderPage,
    Links,
    ObjectChanged,
    ObjectExists,
    ObjectFacts,
    ObjectNotFound,
    Page,
    PartLinks,
    PresignUnsupported,
    StorageUnavailable,
    Stored,
    StoreHealth,
    WantedLink,
)
from stores.local import files as local_files
from stores.local.objects import LocalObjects
from stores.streams import check_size, closing
from utils import WorkerError
from worker.meter import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

T = TypeVar("T")

P = ParamSpec("P")

_THREADS, _FILE_THREADS = 16, 8
#: What came of a call, in the words that `stores.s3.metering` has for a bucket.
_OUTCOMES: dict[type[BaseException], str] = {
    ObjectNotFound: "not_found",
    ObjectExists: "conflict",
    ObjectChanged: "conflict",
    StorageUnavailable: "no_answer",
    asyncio.CancelledError: "no_answer",
}


def _nothing() -> None:
    pass


def _counted(
    call: Callable[Concatenate[LocalStore, P], Awaitable[T]],
) -> Callable[Concatenate[LocalStore, P], Coroutine[Any, Any, T]]:
    """As `call`, one of the contract. A folder is sent no requests; it is called."""

    @wraps(call)
    async def counted(self: LocalStore, /, *args: P.args, **options: P.kwargs) -> T:
        outcome = "ok"
        try:
            return await call(self, *args, **options)
        except BaseException as error:
            outcome = _OUTCOMES.get(type(error), "refused")
            raise
        finally:
            self._meter.asked(call.__name__, outcome)

    return counted


class LocalStore:
    """`storage.Store` on a directory, shared by any number of threads and processes."""

    def __init__(self, root: Path, meter: Meter | None = None) -> None:
        """Makes nothing yet: the folder appears at the first call. `meter` counts the calls."""
        self._objects = LocalObjects(root)
        self._meter = meter or Meter()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-store")
        # Files have threads of their own: a record's heartbeat never waits behind a copy.
        self._file_pool = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="local-files")
        self.url = self._objects.root.as_uri()

    async def capabilities(self, *, fresh: bool = False) -> Capabilities:
        """All but links to write to. Links are `file://` and open on this machine only."""
        return Capabilities(
            conditional_writes=True, presign=True, multi_delete=True, write_links=False
        )

    @_counted
    async def get(
        self, key: str, *, cached: Stored | None = None, limit: int | None = None
    ) -> Stored:
        """See `Store.get`."""
        stored = await self._run(partial(self._objects.get, key, cached, limit))
        if cached is None or stored.version != cached.version:
            self._meter.moved("down", len(stored.data))
        return stored

    @_counted
    async def stat(self, key: str) -> ObjectFacts:
        """See `Store.stat`."""
        return await self._run(partial(self._objects.stat, key))

    @_counted
    async def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Store.get_range`."""
        call = partial(self._objects.get_range, key, offset, length)
        data = await self._run(call, self._file_pool)
        self._meter.moved("down", len(data))
        return data

    @_counted
    async def put(self, key: str, data: bytes, *, content_type: str | None = None) -> str:
        """See `Store.put`. A file has no content type: what is given is dropped."""
        return await self._write(partial(self._objects.write, key, data), data)

    @_counted
    async def create(self, key: str, data: bytes) -> str:
        """See `Store.create`."""
        return await self._write(partial(self._objects.write_over, key, data, None), data)

    @_counted
    async def replace(self, key: str, data: bytes, version: str) -> str:
        """See `Store.replace`."""
        return await self._write(partial(self._objects.write_over, key, data, version), data)

    @_counted
    async def list(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> Page:
        """See `Store.list`. Reads the folders it must, not the tree."""
        return await self._run(partial(self._objects.list, prefix, start_after or "", limit))

    @_counted
    async def list_folders(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> FolderPage:
        """See `Store.list_folders`."""
        return await self._run(partial(self._objects.list_folders, prefix, start_after, limit))

    @_counted
    async def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`. Folders that this leaves empty go too."""
        await self._run(partial(self._objects.delete, keys))

    @_counted
    async def upload(
        self,
        file: BinaryIO,
        key: str,
        *,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """See `Store.upload`."""
        with local_files.transfer(on_bytes) as transfer:
            facts = await self._to_the_end(
                partial(self._objects.upload, file, key, transfer), transfer.abandoned.set
            )
        self._meter.moved("up", facts.size)
        return facts

    @_counted
    async def upload_stream(
        self,
        chunks: AsyncIterator[bytes],
        key: str,
        *,
        size: int,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """See `Store.upload_stream`. Holds one chunk, and no thread while it waits for the next."""
        async with closing(chunks):
            draft, came = self._objects.draft(), 0
            try:
                await self._to_the_end(partial(self._objects.begin, draft, key))
                async for chunk in chunks:
                    came += len(chunk)
                    check_size(came, size)
                    await self._to_the_end(partial(self._objects.append, draft, chunk))
                    if on_bytes is not None:
                        on_bytes(len(chunk))
                facts = await self._to_the_end(partial(self._objects.publish, draft, key))
                self._meter.moved("up", facts.size)
                return facts
            finally:
                await self._to_the_end(draft.discard)

    @_counted
    async def download(
        self,
        key: str,
        path: Path,
        *,
        expected: FileFacts | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """See `Store.download`. Makes the folders `path` lies in."""
        with local_files.transfer(on_bytes) as transfer:
            facts = await self._to_the_end(
                partial(self._objects.download, key, path, expected, transfer),
                transfer.abandoned.set,
            )
        self._meter.moved("down", facts.size)
        return facts

    async def presign_get(self, key: str, *, expires_in: int, filename: str | None = None) -> str:
        """A `file://` URL. It neither expires nor renames; there is no server to see to that."""
        return self._objects.link(key)

    async def presign_gets(self, wanted: Sequence[WantedLink], *, expires_in: int) -> Links:
        """See `presign_get`."""
        return await self._run(lambda: [self._objects.link(each.key) for each in wanted])

    async def presign_put(
        self,
        key: str,
        *,
        expires_in: int,
        content_type: str | None = None,
        size: int | None = None,
        create_only: bool = False,
    ) -> str:
        """Always refused: nothing would take in what is sent to a `file://` URL."""
        self._objects.checked(key)
        raise PresignUnsupported("a store in a folder has no links to write to")

    async def presign_parts(
        self,
        key: str,
        *,
        size: int,
        part_size: int,
        expires_in: int,
        content_type: str | None = None,
    ) -> PartLinks:
        """Always refused, as `presign_put`."""
        self._objects.checked(key)
        raise PresignUnsupported("a store in a folder has no links to write to")

    async def join_parts(self, key: str, upload_id: str, *, size: int) -> None:
        """Always refused: there are no parts without `presign_parts`."""
        self._objects.checked(key)
        raise PresignUnsupported("a store in a folder has no links to write to")

    async def check(self) -> StoreHealth:
        """See `Store.check`."""
        key, data = f"locks/check-{secrets.token_hex(8)}", secrets.token_bytes(16)
        started = time.perf_counter()
        try:
            await self.put(key, data)
            stored = await self.get(key)
            offset = None if stored.read_at is None else time.time() - stored.read_at
            await self.delete([key])
        except WorkerError as error:
            return StoreHealth(False, str(error), None, None)
        if stored.data != data:
            return StoreHealth(False, f"{self.url} gave back other bytes", None, offset)
        took_ms = (time.perf_counter() - started) * 1000
        return StoreHealth(True, f"wrote, read and removed a file in {self.url}", took_ms, offset)

    async def close(self) -> None:
        """See `Store.close`. Waits for the calls under way."""
        await asyncio.to_thread(self._file_pool.shutdown)
        await asyncio.to_thread(self._pool.shutdown)

    # ---- inside

    async def _write(self, call: Callable[[], str], data: bytes) -> str:
        version = await self._run(call)
        self._meter.moved("up", len(data))
        return version

    async def _run(self, call: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool or self._pool, call)

    async def _to_the_end(self, call: Callable[[], T], stop: Callable[[], None] = _nothing) -> T:
        """As `_run`. When cancelled, calls `stop` and waits until the call has ended, so that
        nothing still uses a file that is about to be closed or discarded."""
        job = self._file_pool.submit(call)
        work = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop()
            if not job.cancel():  # it has begun
                await asyncio.wait({work})
            raise
