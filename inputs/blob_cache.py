"""Files that more than one process needs: fetched once for a worker, copied for each.

Every process gets a copy and never a link: it may write to its inputs. Workers may share the
folder, and jobs run as the same user and may rewrite both files of a blob, so nothing in it is
trusted. A blob counts only if its sha256 is the one that the caller declares or that this worker
brought, and every copy is checked against it. A blob that vanished or has other bytes is fetched
again.

A blob is two files. `{key}-{sha256}.blob` has the bytes, and was last modified when it was last
used; `{key}.json` says which bytes are the newest. The key is a hash of the identity, which may be
a secret (a presigned URL) and is never written down.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from inputs.errors import DiskFull, InputNotStored
from inputs.files import (
    CHUNK,
    Blob,
    disk_errors,
    make_empty,
    new_part_beside,
    open_regular,
    part_beside,
    remove,
    to_the_end,
    write_at,
)

log = logging.getLogger(__name__)

#: Makes the path a whole file. Given what is here already, it may answer None: that is still good.
Fetch = Callable[[Path, Blob | None], Awaitable[Blob | None]]

#: Whoever writes a temporary file does not pause for so long: it was killed.
_ABANDONED_SECONDS = 3600.0
#: Times that a blob may vanish between its fetch and its copy, which only other workers can do.
_ROUNDS = 3
#: Share of the limit that is free again after something had to be removed.
SPARED = 0.1


class _Wanted(NamedTuple):
    """A blob that a caller asks for; see `BlobCache.place`."""

    key: str
    fetch: Fetch
    immutable: bool
    sha256: str | None


class _Kept(NamedTuple):
    """A blob in the folder."""

    #: When it was last used, in nanoseconds since the epoch.
    used_ns: int
    size: int
    path: Path


class _Found(NamedTuple):
    """A file to copy from, for as long as somebody of its share waits."""

    blob: Blob
    path: Path
    #: False: it is larger than the cache and goes with the last who waits.
    kept: bool


class _Share:
    """What callers of one identity wait for together."""

    def __init__(self, bring: asyncio.Task[_Found]) -> None:
        self.bring = bring
        self.waiting = 0


class BlobCache:
    """Blobs by identity, in `folder`, of `max_bytes` in all. 0 keeps nothing, shares all the same.

    The sum is kept whenever nothing is under way; what is being fetched or copied is never removed.
    Workers that share the folder each look when they themselves have brought enough. A disk has
    room for half of the blobs that would fill it: the other half is for the copies.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        #: Less as soon as it is prepared, if the disk is small.
        self._max_bytes = max_bytes
        self._shares: dict[str, _Share] = {}
        #: Callers by key.
        self._busy: Counter[str] = Counter()
        #: The sha256 of blobs that this worker brought, by key.
        self._brought: dict[str, str] = {}
        self._preparing = asyncio.Lock()
        self._prepared = False
        #: Bytes that may still come before somebody must look at all that is here.
        self._room = 0

    async def place(
        self,
        identity: str,
        target: Path,
        fetch: Fetch,
        *,
        immutable: bool,
        sha256: str | None = None,
    ) -> Blob:
        """Write the bytes that `identity` names to `target`, whose folder must exist.

        `immutable` says that one identity never means other bytes: then a blob that is here is not
        asked about again. `sha256` is the declared hash of its bytes. Callers of one identity at
        the same time share one `fetch`, that of the first; it is cancelled when the last caller
        leaves. If the disk is full, all unused blobs are removed and it is tried once more.

        Raises:
            InputNotStored: the disk did not take it.
            Exception: whatever `fetch` raised. Another caller's failure is not ours: then our own
                `fetch` is tried.
        """
        key = hashlib.sha256(identity.encode()).hexdigest()
        self._busy[key] += 1
        try:
            blob = await self._place(_Wanted(key, fetch, immutable, sha256), target)
        finally:
            self._busy[key] -= 1
            self._busy += Counter()  # forgets keys that nobody calls for
        await self._evict()
        return blob

    async def _place(self, wanted: _Wanted, target: Path) -> Blob:
        try:
            return await self._bring_and_copy(wanted, target)
        except DiskFull:
            await self._make_room()
            return await self._bring_and_copy(wanted, target)

    async def _bring_and_copy(self, wanted: _Wanted, target: Path) -> Blob:
        rounds = 0
        while rounds < _ROUNDS:
            share, mine = self._join(wanted)
            try:
                found = await asyncio.shield(share.bring)
                if await self._deliver(share, found, target):
                    return found.blob
                rounds += 1
            except Exception:
                if mine:
                    raise
                # It was another one's limit or link that failed: now it is our own that counts.
            finally:
                await self._leave(wanted.key, share)
        raise InputNotStored("the input was removed from this worker's disk again and again")

    def _join(self, wanted: _Wanted) -> tuple[_Share, bool]:
        """What is on its way, and whether that is by our own `fetch`."""
        key = wanted.key
        share = self._shares.get(key)
        mine = share is None
        if share is None:
            bring = asyncio.create_task(self._bring(wanted))
            share = self._shares[key] = _Share(bring)
            # Who comes later asks for himself: it may have changed since.
            bring.add_done_callback(lambda _: self._forget(key, share))
        share.waiting += 1
        return share, mine

    async def _leave(self, key: str, share: _Share) -> None:
        """The last waiter cancels the fetch and removes an uncached file."""
        share.waiting -= 1
        if share.waiting:
            return
        self._forget(key, share)
        share.bring.cancel()  # nothing happens to one that is done
        (end,) = await asyncio.gather(share.bring, return_exceptions=True)
        if isinstance(end, _Found) and not end.kept:
            await remove(end.path)

    def _forget(self, key: str, share: _Share) -> None:
        if self._shares.get(key) is share:
            del self._shares[key]

    async def _bring(self, wanted: _Wanted) -> _Found:
        """See to it that the newest bytes are here."""
        await self._prepare()
        key = wanted.key
        here = await asyncio.to_thread(self._look_up, key)
        proven = wanted.sha256 or self._brought.get(key)
        known = here if here and here.sha256 == proven else None
        if known and wanted.immutable:
            return _Found(known, self._content(key, known), kept=True)
        part = part_beside(self._side(key))
        try:
            blob = await wanted.fetch(part, known)
            if blob is None:
                assert known is not None, "a fetch that knew of nothing found it unchanged"
                return _Found(known, self._content(key, known), kept=True)
            if blob.size > self._max_bytes:
                return _Found(blob, part, kept=False)
            with disk_errors():
                await asyncio.to_thread(self._keep, key, blob, part, here)
            self._brought[key] = blob.sha256
            self._room -= blob.size
        except BaseException:
            await remove(part)
            raise
        await self._evict()
        return _Found(blob, self._content(key, blob), kept=True)

    async def _deliver(self, share: _Share, found: _Found, target: Path) -> bool:
        """Whether `target` is it now; False, and the blob is gone, if it has not these bytes."""
        if not found.kept and share.waiting == 1:
            with suppress(OSError):  # another file system, say: then it is copied
                found.path.replace(target)
                return await _has_bytes_of(target, found.blob)
        with disk_errors():
            if await _copied(found.path, target, found.blob):
                return True
            await asyncio.to_thread(found.path.unlink, missing_ok=True)
            return False

    # ---- the folder

    async def _prepare(self) -> None:
        async with self._preparing:
            if not self._prepared:
                with disk_errors():
                    await asyncio.to_thread(self._sweep)
                self._prepared = True

    async def _evict(self) -> None:
        if self._room > 0:
            return
        try:
            self._room = await asyncio.to_thread(self._trim, frozenset(self._busy))
        except OSError as error:  # no reason to fail who has what was asked for
            log.warning("old inputs were not removed: %s", error.strerror)

    async def _make_room(self) -> None:
        log.warning("the disk is full: kept inputs are removed")
        with disk_errors():
            blobs = await asyncio.to_thread(self._blobs)
            await asyncio.to_thread(self._remove_oldest, blobs, frozenset(self._busy), 0)

    def _side(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _content(self, key: str, blob: Blob) -> Path:
        return self._folder / f"{key}-{blob.sha256}.blob"

    def _look_up(self, key: str) -> Blob | None:
        """What is here and whole. To look is to use."""
        try:
            with open_regular(self._side(key)) as side:
                blob = Blob.model_validate_json(side.read(CHUNK) or b"")
            content = self._content(key, blob)
            os.utime(content, follow_symlinks=False)
            return blob if content.lstat().st_size == blob.size else None
        except (OSError, ValidationError):
            return None

    def _keep(self, key: str, blob: Blob, part: Path, old: Blob | None) -> None:
        """First the bytes, then the word about them: a reader finds the old pair or the new."""
        part.replace(self._content(key, blob))
        side = self._side(key)
        written = part_beside(side)
        try:
            written.write_text(blob.model_dump_json())
            written.replace(side)
        finally:
            written.unlink(missing_ok=True)
        if old is not None and old.sha256 != blob.sha256:
            self._content(key, old).unlink(missing_ok=True)

    def _trim(self, busy: frozenset[str]) -> int:
        """To SPARED below the limit, or the next small file would look again. The room left."""
        blobs = self._blobs()
        left = sum(blob.size for blob in blobs)
        if left > self._max_bytes:
            left = self._remove_oldest(blobs, busy, int(self._max_bytes * (1 - SPARED)))
        return self._max_bytes - left

    def _remove_oldest(self, blobs: list[_Kept], busy: frozenset[str], most: int) -> int:
        """Until `most` bytes are left, or nothing but what is busy. The bytes left."""
        left = sum(blob.size for blob in blobs)
        for blob in sorted(blobs):
            key = blob.path.name.partition("-")[0]
            if left > most and key not in busy:
                self._brought.pop(key, None)
                self._side(key).unlink(missing_ok=True)
                blob.path.unlink(missing_ok=True)
                left -= blob.size
        return left

    def _blobs(self) -> list[_Kept]:
        blobs = []
        for path in self._folder.glob("*.blob"):
            with suppress(FileNotFoundError):  # another worker's doing
                facts = path.stat()
                blobs.append(_Kept(facts.st_mtime_ns, facts.st_size, path))
        return blobs

    def _sweep(self) -> None:
        """Make and hold the folder, remove what killed writers left, see how large the disk is.

        From here on paths lead through the open folder (`/proc/self/fd`): a link that a job lays in
        its place diverts nothing.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        weakref.finalize(self, os.close, held)
        self._folder = Path(f"/proc/self/fd/{held}")
        for path in self._folder.glob(".*.part"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        ours = shutil.disk_usage(self._folder).free + sum(blob.size for blob in self._blobs())
        self._max_bytes = min(self._max_bytes, ours // 2)


async def _has_bytes_of(path: Path, blob: Blob) -> bool:
    """Whether a file that lay among others' is what was fetched; if not, it is removed."""

    def compare() -> bool:
        with open_regular(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256:
                return True
        path.unlink()
        return False

    return await to_the_end(compare)


async def _copied(source: Path, target: Path, blob: Blob) -> bool:
    """Whether `target` is a whole copy of `source`, whose bytes should be those of `blob`.

    A thread for each piece and not for all: a few large copies would keep every thread that the
    worker has for small things. Which are copied by one thread, from the first step to the last:
    among thousands of them, handing over costs more than copying.
    """
    if blob.size < CHUNK:
        return await to_the_end(partial(_copy_small, source, target, blob))
    copied, digest = 0, hashlib.sha256()
    async with new_part_beside(target) as part:
        try:
            while copied < blob.size:
                count = await asyncio.to_thread(_copy_some, source, part, copied, digest)
                if not count:
                    return False
                copied += count
        except FileNotFoundError:
            return False
        if (copied, digest.hexdigest()) != (blob.size, blob.sha256):
            return False
        part.replace(target)
        return True


def _copy_small(source: Path, target: Path, blob: Blob) -> bool:
    """As `_copied`, for less than a CHUNK."""
    part, digest = part_beside(target), hashlib.sha256()
    make_empty(part)
    try:
        count = _copy_some(source, part, 0, digest)
        if (count, digest.hexdigest()) != (blob.size, blob.sha256):
            return False
        part.replace(target)
    except FileNotFoundError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _copy_some(source: Path, part: Path, offset: int, digest: hashlib._Hash) -> int:
    """Copy a piece and add it to `digest`. Bytes copied; 0 at the end."""
    with open_regular(source) as original:
        original.seek(offset)
        data = original.read(CHUNK) or b""
    digest.update(data)
    write_at(part, offset, data)
    return len(data)
