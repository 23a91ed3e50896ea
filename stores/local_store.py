"""A store in a folder: the default without a bucket, and at home on a network volume.

An object is the file `root/key`, so people can open it. What the store needs for itself lies in
`root/.local-store`: lock files, files being written, and a file whose time stamp is our clock.

Why it holds:

- A write makes a new file beside the objects, syncs it and renames it into place, so a kill at
  any instant leaves the old object or the new one, and a reader never sees half of either.
- Whoever writes or removes a key holds a lock while it compares and renames. The lock is `flock`
  on one of a fixed number of files: the kernel drops it when its holder dies, however it dies.
- A version is the SHA-256 of the bytes. Two writes of the same bytes share one, as on S3, so a
  compare-and-swap cannot tell A from A after B. Whoever cares writes a nonce or a revision into
  the bytes, as records do. A time stamp would tell them apart on a local disk, but some network
  filesystems round it after the fact, and a false "it changed" kills a healthy process.
- Ages compare two stamps of the filesystem's own clock, so workers whose clocks disagree agree.

Not held: `flock` must reach every worker that mounts the filesystem. On a local disk, NFS and
MooseFS it does. Folders that are links are not followed, nor are objects that are links.
"""

# ruff: noqa: ARG002 - the contract passes some things that a folder has no use for
from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from storage import (
    MAX_PAGE,
    Capabilities,
    ChecksumMismatch,
    FileFacts,
    InvalidKey,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    Page,
    PresignUnsupported,
    Stored,
    StoreHealth,
    check_key,
    check_prefix,
)
from stores import local_files
from utils import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

#: Two keys that share a lock wait for each other, but never wrongly; 256 make that rare.
_LOCKS = 256
#: A file nobody has written to for so long lost its writer. Were that wrong, the writer's rename
#: would fail as `StorageUnavailable` and nothing would be damaged.
_ABANDONED_SECONDS = 3600.0
_THREADS, _FILE_THREADS = 16, 8


class LocalStore:
    """`storage.Store` on a directory, shared by any number of threads and processes."""

    def __init__(self, root: Path) -> None:
        """Makes nothing yet: the folder appears at the first call."""
        # Resolved once, so that a link met later on is one inside the store.
        self._root = root.resolve()
        self._hidden = self._root / local_files.HIDDEN
        self._prepared = False
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-store")
        # Files have threads of their own: a record's heartbeat never waits behind a copy.
        self._file_pool = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="local-files")
        self.url = self._root.as_uri()

    async def capabilities(self) -> Capabilities:
        """Everything: links are `file://` and open on this machine only."""
        return Capabilities(conditional_writes=True, presign=True, multi_delete=True)

    async def get(self, key: str, *, cached: Stored | None = None) -> Stored:
        """See `Store.get`."""
        return await self._run(partial(self._get, key, cached))

    async def put(self, key: str, data: bytes, *, content_type: str | None = None) -> str:
        """See `Store.put`. A file has no content type: what is given is dropped."""
        return await self._run(partial(self._write, key, data))

    async def create(self, key: str, data: bytes) -> str:
        """See `Store.create`."""
        return await self._run(partial(self._write_over, key, data, None))

    async def replace(self, key: str, data: bytes, version: str) -> str:
        """See `Store.replace`."""
        return await self._run(partial(self._write_over, key, data, version))

    async def list(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> Page:
        """See `Store.list`. Reads the folders it must, not the tree."""
        return await self._run(partial(self._list, prefix, start_after or "", limit))

    async def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`. Folders that this leaves empty go too."""
        await self._run(partial(self._delete, keys))

    async def upload(
        self,
        path: Path,
        key: str,
        *,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """See `Store.upload`."""
        with local_files.transfer(on_bytes) as transfer:
            return await self._run(partial(self._upload, path, key, transfer), self._file_pool)

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
            return await self._run(
                partial(self._download, key, path, expected, transfer), self._file_pool
            )

    async def presign_get(self, key: str, *, expires_in: int, filename: str | None = None) -> str:
        """A `file://` URL. It neither expires nor renames; there is no server to see to that."""
        return (self._root / self._checked(key)).as_uri()

    async def presign_put(
        self, key: str, *, expires_in: int, content_type: str | None = None, size: int | None = None
    ) -> str:
        """Always refused: nothing would take in what is sent to a `file://` URL."""
        self._checked(key)
        raise PresignUnsupported("a store in a folder has no links to write to")

    async def check(self) -> StoreHealth:
        """See `Store.check`."""
        key, data = f"checks/{secrets.token_hex(8)}", secrets.token_bytes(16)
        started = time.perf_counter()
        try:
            await self.put(key, data)
            stored = await self.get(key)
            offset = time.time() - (stored.modified + stored.age_seconds)
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

    # ---- all below runs in the pool's threads

    async def _run(self, call: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool or self._pool, call)

    def _get(self, key: str, cached: Stored | None) -> Stored:
        with self._opened(key) as file:
            data, modified = file.read(), os.fstat(file.fileno()).st_mtime
            # Read first, then look at the clock: an age is at least 0.
            age = max(0.0, self._now() - modified)
        version = _version(data)
        if cached is not None and cached.version == version:
            return cached._replace(modified=modified, age_seconds=age)
        return Stored(data, version, modified, age)

    def _write(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with self._at_work(), self._locked(key):
            self._store(data, path)
        return _version(data)

    def _write_over(self, key: str, data: bytes, expected: str | None) -> str:
        """Compare-and-swap. `expected` None: nothing may be there."""
        path, version = self._path(key), _version(data)
        with self._at_work(), self._locked(key):
            found = self._found(key)
            if found == expected:
                self._store(data, path)
            elif found != version:  # else it is ours, from a call whose end nobody saw
                if expected is None:
                    raise ObjectExists(f"there is already an object {key!r}")
                raise ObjectChanged(f"object {key!r} is not the version that was read")
        return version

    def _found(self, key: str) -> str | None:
        try:
            with self._opened(key) as file:
                return _version(file.read())
        except ObjectNotFound:
            return None

    def _list(self, prefix: str, start_after: str, limit: int) -> Page:
        limit, folder = min(limit, MAX_PAGE), self._path(check_prefix(prefix) + "_").parent
        with self._at_work():
            rows = list(islice(local_files.walk(folder, prefix, start_after), limit + 1))
            # A folder that is not there lists as empty, unless nothing is there any more.
            self._now()
        more = len(rows) > limit
        return Page(rows[:limit], rows[limit - 1].key if more else None)

    def _delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key) for key in keys]
        with self._at_work():
            for key, path in zip(keys, paths, strict=True):
                with self._locked(key):
                    local_files.unlink(path)
                self._prune(path.parent)

    def _upload(self, path: Path, key: str, transfer: local_files.Transfer) -> FileFacts:
        target = self._path(key)
        # Opened out here because what is wrong with the caller's file is not the store's fault.
        with path.open("rb", buffering=0) as source, self._at_work():
            before = local_files.identity(source.fileno())
            with local_files.temporary(self._hidden / "writing") as temporary:
                with temporary.open("xb") as copy:
                    facts = local_files.copy(source, copy, transfer)
                    local_files.sync(copy)
                if local_files.identity(path) != before:
                    raise ChecksumMismatch(f"{path.name!r} changed while it was read")
                with self._locked(key):
                    self._publish(temporary, target)
            return facts

    def _download(
        self, key: str, path: Path, expected: FileFacts | None, transfer: local_files.Transfer
    ) -> FileFacts:
        with self._opened(key) as source, local_files.storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with local_files.temporary(path.parent) as temporary:
                with temporary.open("xb") as copy:
                    facts = local_files.copy(source, copy, transfer)
                if expected is not None and facts != expected:
                    raise ChecksumMismatch(f"object {key!r} is not the file that was announced")
                temporary.replace(path)
            return facts

    # ---- the filesystem

    def _checked(self, key: str) -> str:
        if check_key(key).partition("/")[0] == local_files.HIDDEN:
            raise InvalidKey(f"{local_files.HIDDEN!r} is the store's own folder")
        return key

    def _path(self, key: str) -> Path:
        path = self._root / self._checked(key)
        if os.path.realpath(path.parent) != str(path.parent):
            raise InvalidKey("a folder of this key is a link, and links are not followed")
        return path

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Our folders exist, and an `OSError` becomes what a store may raise."""
        with local_files.storage_errors(self._root):
            if not self._prepared:
                # Once only. Made anew each time, a lost volume would look like an empty one.
                for name in ("locks", "writing"):
                    (self._hidden / name).mkdir(parents=True, exist_ok=True)
                (self._hidden / "clock").touch()
                self._sweep()
                self._prepared = True
            yield

    def _now(self) -> float:
        """The filesystem's clock, in seconds since the epoch.

        Raises:
            FileNotFoundError: the store as a whole is gone.
        """
        clock = os.open(self._hidden / "clock", os.O_WRONLY)
        try:
            os.utime(clock)
            return os.fstat(clock).st_mtime
        finally:
            os.close(clock)

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        now = self._now()
        for path in (self._hidden / "writing").iterdir():
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Alone with this key among all threads and processes on this filesystem."""
        name = f"{zlib.crc32(key.encode()) % _LOCKS:02x}"
        with local_files.locked(self._hidden / "locks" / name):
            yield

    @contextmanager
    def _opened(self, key: str) -> Iterator[FileIO]:
        path = self._path(key)
        with self._at_work():
            try:
                file = FileIO(path, opener=local_files.no_links)
            except OSError as error:
                # A link or a folder (ELOOP, EISDIR), or a part that is an object, is no object.
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
                    raise
                self._now()
                raise ObjectNotFound(f"there is no object {key!r}") from None
            with file:
                yield file

    def _store(self, data: bytes, path: Path) -> None:
        with local_files.temporary(self._hidden / "writing") as temporary:
            with temporary.open("xb") as file:
                file.write(data)
                local_files.sync(file)
            self._publish(temporary, path)

    def _publish(self, temporary: Path, path: Path) -> None:
        """Rename into place. Making the folders can race with `_prune`, hence the loop."""
        folders = [path.parent, *path.parent.parents]
        folders = folders[: folders.index(self._root) + 1]
        try:
            for _ in range(100):
                with suppress(FileNotFoundError):
                    temporary.replace(path)
                    local_files.sync_folders(folders[:1])
                    return
                # Either error may be the race; if a folder is really a file, the rename will say.
                with suppress(FileNotFoundError, FileExistsError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    local_files.sync_folders(folders)
        except (NotADirectoryError, IsADirectoryError):
            raise InvalidKey("a key cannot be both an object and a folder of objects") from None
        raise FileNotFoundError(errno.ENOENT, "the file being written is gone")

    def _prune(self, folder: Path) -> None:
        with suppress(OSError):  # it is not empty, or somebody else was faster
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
