"""A bucket as a `Store`: what is tried again, what an unclear answer means, what a store lacks.

`bucket` types the failure of a request; this module decides what follows from it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar
from weakref import WeakValueDictionary

from storage import (
    MAX_PAGE,
    FolderPage,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    Page,
    PartLinks,
    PresignUnsupported,
    StorageUnavailable,
    StoreHealth,
    WantedLink,
    check_key,
    check_listed,
    check_prefix,
    check_range,
)
from stores.probe import probe
from stores.s3 import links
from stores.s3.bucket import Bucket
from stores.s3.client import S3Config, normal_prefix
from stores.s3.errors import PreconditionRefused, clock_offset
from stores.s3.files import Transfers
from stores.s3.stopping import Stop
from stores.s3.threads import Lane, retrying
from stores.streams import closing
from utils import WorkerError
from worker.meter import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from storage import Capabilities, FileFacts, Links, ObjectFacts, Stored
    from worker.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

READERS, WRITERS = 24, 16
#: Bytes per second that even a poor link moves; larger writes are given more time.
SLOW = 1 << 20

#: A request that names many keys is XML, which holds no such character.
_NOT_IN_XML = re.compile(r"[\x00-\x1f\ufffe\uffff]")


class S3Store:
    """See `storage.Store`. Objects read or written whole are a few megabytes; files are files."""

    def __init__(
        self,
        *,
        prefix: str = "",
        retry_seconds: float = 8.0,
        meter: Meter | None = None,
        **options: Any,
    ) -> None:
        """`options` are the fields of `S3Config`. Makes no request and no client.

        Raises:
            StorageMisconfigured: the prefix cannot be one, or half of a pair of keys is missing.
        """
        config = S3Config(**options)
        self._prefix = normal_prefix(prefix)
        self.url = f"s3://{config.bucket}/{self._prefix}"
        self._bucket = Bucket(config, meter or Meter())
        self._retry_seconds = retry_seconds
        #: One request, DNS included, takes no longer than this.
        self._patience = config.connect_timeout + config.read_timeout + 1.0
        self._reads = Lane("s3-read", READERS)
        self._writes = Lane("s3-write", WRITERS)
        self._files = Transfers(self._bucket)
        self._probing: asyncio.Task[Capabilities] | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    def from_settings(cls, settings: Settings, meter: Meter | None = None) -> Self:
        """The bucket that the environment names."""
        config = S3Config.from_settings(settings)
        return cls(prefix=settings.prefix, meter=meter, **asdict(config))

    # ---- what the store can do

    async def capabilities(self, *, fresh: bool = False) -> Capabilities:
        """As `Store.capabilities`. Many callers wait for one probe; a failed one is forgotten."""
        if fresh:  # meanwhile everybody goes on with what is known
            anew = asyncio.create_task(self._probe())
            await anew
            self._probing = anew
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe())
            self._probing.add_done_callback(self._forget_failure)
        return await asyncio.shield(self._probing)

    async def _probe(self) -> Capabilities:
        folder = f"{self._prefix}locks/probe-{secrets.token_hex(8)}"
        found = await self._writes.run(partial(probe, self._bucket, folder, self._retry_seconds))
        log.info("store probed", extra={"store": self.url, "capabilities": found._asdict()})
        for sentence in found.degraded:
            log.warning("%s: %s", self.url, sentence)
        return found

    def _forget_failure(self, task: asyncio.Task[Capabilities]) -> None:
        if task.cancelled() or task.exception():
            self._probing = None

    # ---- bytes

    async def get(
        self, key: str, *, cached: Stored | None = None, limit: int | None = None
    ) -> Stored:
        """As `Store.get`."""
        if limit is not None:
            return await self._read(partial(self._bucket.get_start, self._full(key), limit))
        return await self._read(partial(self._bucket.get, self._full(key), cached))

    async def stat(self, key: str) -> ObjectFacts:
        """As `Store.stat`."""
        return await self._read(partial(self._bucket.stat, self._full(key)))

    async def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """As `Store.get_range`."""
        full = self._full(key)
        check_range(offset, length)

        def read() -> bytes:
            return b"".join(self._bucket.get_range(full, offset, length, None, Stop()).bites)

        return await self._files.run(read)

    async def put(self, key: str, data: bytes, *, content_type: str | None = None) -> str:
        """As `Store.put`."""
        call = partial(self._bucket.put, self._full(key), data, content_type)
        return await self._write(call, len(data))

    async def create(self, key: str, data: bytes) -> str:
        """As `Store.create`."""
        return await self._put_if(key, data, None)

    async def replace(self, key: str, data: bytes, version: str) -> str:
        """As `Store.replace`."""
        return await self._put_if(key, data, version)

    async def _put_if(self, key: str, data: bytes, version: str | None) -> str:
        full = self._full(key)
        if not (await self.capabilities()).conditional_writes:
            return await self._put_after_looking(key, data, version)
        call = partial(self._bucket.put_if, full, data, version)
        started = time.monotonic()
        try:
            # once only: a repeated one would be refused because of its own success
            return await self._writes.run(call, seconds=self._patience + len(data) / SLOW)
        except (PreconditionRefused, ObjectNotFound, StorageUnavailable) as unclear:
            # both together take no longer than any other call: a lease waits for the outcome
            found = await self._look(full, self._retry_seconds - (time.monotonic() - started))
            if found is not None and found.data == data:
                return found.version
            raise _verdict(key, version, found) from unclear

    async def _put_after_looking(self, key: str, data: bytes, version: str | None) -> str:
        """Single-writer mode: atomic among the callers in this process, and only among them."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            found = await self._look(self._full(key), self._retry_seconds)
            if found is not None and found.data == data:
                return found.version
            if (found.version if found else None) != version:
                raise _verdict(key, version, found)
            return await self.put(key, data)

    async def _look(self, full: str, seconds: float) -> Stored | None:
        """What is there now. Raises StorageUnavailable when that cannot be known in time."""
        try:
            return await self._read(partial(self._bucket.get, full), seconds)
        except ObjectNotFound:
            return None

    # ---- many

    async def list(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> Page:
        """As `Store.list`."""
        after = None if start_after is None else self._prefix + start_after
        full = self._prefix + check_prefix(prefix)
        page = await self._read(partial(self._bucket.list, full, after, min(limit, MAX_PAGE)))
        own = len(self._prefix)
        rows = [row._replace(key=row.key[own:]) for row in page.objects]
        return Page(rows, page.next and page.next[own:])

    async def list_folders(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> FolderPage:
        """As `Store.list_folders`."""
        full, limit = self._prefix + check_prefix(prefix), min(limit, MAX_PAGE)
        # Past a folder as a whole: `0` comes after `/`. With `name/`, stores that compare keys
        # give the folder again, and with the highest character as its end, some stores choke.
        after = None if start_after is None else f"{full}{start_after}0"
        page = await self._read(partial(self._bucket.list_folders, full, after, limit))
        while page.last and not page.names:
            call = partial(self._bucket.list_folders, full, page.last, limit)
            page = await self._read(call)
        return FolderPage([*page.names], page.names[-1] if page.last else None)

    async def delete(self, keys: Sequence[str]) -> None:
        """As `Store.delete`."""
        full = [self._prefix + check_listed(key) for key in dict.fromkeys(keys)]
        many = [key for key in full if not _NOT_IN_XML.search(key)]
        if len(full) == 1 or not (await self.capabilities()).multi_delete:
            many = []
        apart = set(full).difference(many)
        calls: list[Callable[[], None]] = [
            partial(self._bucket.delete_many, many[start : start + MAX_PAGE])
            for start in range(0, len(many), MAX_PAGE)
        ]
        calls += [partial(self._bucket.delete, key) for key in apart]
        await asyncio.gather(*(self._write(call) for call in calls))

    # ---- files

    async def upload(
        self,
        file: BinaryIO,
        key: str,
        *,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """As `Store.upload`."""
        return await self._files.upload(file, self._full(key), content_type, on_bytes or _ignore)

    async def upload_stream(
        self,
        chunks: AsyncIterator[bytes],
        key: str,
        *,
        size: int,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """As `Store.upload_stream`."""
        async with closing(chunks):
            full = self._full(key)
            return await self._files.upload_stream(
                chunks, full, size, content_type, on_bytes or _ignore
            )

    async def download(
        self,
        key: str,
        path: Path,
        *,
        expected: FileFacts | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """As `Store.download`."""
        return await self._files.download(self._full(key), path, expected, on_bytes or _ignore)

    # ---- links; `expires_in` is 1 to 604800, or ValueError

    async def presign_get(self, key: str, *, expires_in: int, filename: str | None = None) -> str:
        """As `Store.presign_get`."""
        (link,) = await self.presign_gets([WantedLink(key, filename)], expires_in=expires_in)
        return link

    async def presign_gets(self, wanted: Sequence[WantedLink], *, expires_in: int) -> Links:
        """As `Store.presign_gets`."""
        full = [each._replace(key=self._full(each.key)) for each in wanted]
        await self._check_links(expires_in)
        return await self._reads.run(partial(links.links_to_read, self._bucket, full, expires_in))

    async def presign_put(
        self,
        key: str,
        *,
        expires_in: int,
        content_type: str | None = None,
        size: int | None = None,
        create_only: bool = False,
    ) -> str:
        """As `Store.presign_put`."""
        full = self._full(key)
        found = await self._check_links(expires_in, to_write=True)
        call = partial(
            links.link_to_write,
            self._bucket,
            full,
            expires_in,
            content_type=content_type,
            size=size,
            create_only=create_only and found.conditional_writes,
        )
        return await self._reads.run(call)

    async def presign_parts(
        self,
        key: str,
        *,
        size: int,
        part_size: int,
        expires_in: int,
        content_type: str | None = None,
    ) -> PartLinks:
        """As `Store.presign_parts`."""
        full, sizes = self._full(key), links.part_sizes(size, part_size)
        await self._check_links(expires_in, to_write=True)
        mark = secrets.token_hex(8)
        begin = partial(self._bucket.begin_upload, full, content_type, mark)
        upload_id = await self._write(begin)
        sign = partial(links.links_to_parts, self._bucket, full, upload_id, sizes, expires_in)
        return PartLinks(f"{mark}.{upload_id}", await self._reads.run(sign))

    async def join_parts(self, key: str, upload_id: str, *, size: int) -> None:
        """As `Store.join_parts`."""
        call = partial(links.join, self._bucket, self._full(key), upload_id, size)
        await self._files.run(call)

    async def _check_links(self, seconds: int, *, to_write: bool = False) -> Capabilities:
        links.check_life(seconds)
        found = await self.capabilities()
        if not found.presign:
            raise PresignUnsupported(f"{self.url} has no links that can be fetched without keys")
        if to_write and not found.write_links:
            raise PresignUnsupported(f"{self.url} has no links that write only what they sign")
        return found

    # ---- the store as a whole

    async def check(self) -> StoreHealth:
        """As `Store.check`."""
        key, data = f"locks/check-{secrets.token_hex(8)}", secrets.token_bytes(16)
        started = time.perf_counter()
        try:
            await self.put(key, data)
            found = await self.get(key)
            await self.delete([key])
            took = (time.perf_counter() - started) * 1000
            offset = await self._reads.run(self._bucket.clock_offset, seconds=self._patience)
        except WorkerError as error:
            return StoreHealth(False, str(error), None, clock_offset(error.__cause__))
        if found.data != data:
            return StoreHealth(
                False, f"{self.url} gives back other bytes than it got", took, offset
            )
        return StoreHealth(True, f"{self.url} was written, read and cleared", took, offset)

    async def close(self) -> None:
        """As `Store.close`."""
        if self._probing is not None:
            self._probing.cancel()
        for lane in (self._reads, self._writes, self._files):
            lane.close()
        await asyncio.to_thread(self._bucket.close)

    # ---- inside

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    async def _read(self, call: Callable[[], T], seconds: float | None = None) -> T:
        return await retrying(
            lambda: self._reads.run(call, seconds=self._patience),
            self._retry_seconds if seconds is None else seconds,
        )

    async def _write(self, call: Callable[[], T], size: int = 0) -> T:
        seconds = self._patience + size / SLOW
        return await retrying(lambda: self._writes.run(call, seconds=seconds), self._retry_seconds)


def _verdict(key: str, version: str | None, found: Stored | None) -> WorkerError:
    """Why a conditional write of other bytes than `found` did not come about."""
    there = found.version if found else None
    if there == version:
        # Nobody else has written. Our request may have failed, or be on its way still.
        return StorageUnavailable(f"whether {key!r} was written is unknown; it was not, so far")
    if version is None:
        return ObjectExists(f"{key!r} is taken")
    return ObjectChanged(f"{key!r} has another version" if found else f"{key!r} is gone")


def _ignore(_count: int) -> None:
    """Progress callback that does nothing."""
