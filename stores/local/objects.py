"""The objects in a folder: one blocking call each, from any number of threads and processes.

An object is the file `root/key`, so people can open it. What the store needs for itself lies in
`root/.local-store`: lock files, files being written, and a file whose time stamp is our clock.

Why it holds:

- A write makes a new file beside the objects, syncs it and renames it into place, so a kill at
  any instant leaves the old object or the new one, and a reader never sees half of either.
- Whoever writes or removes a key holds one of a fixed number of locks while it compares and renames
  (`locks`). A holder that died has none, and one that stands still has lost it when it moves.
- A version is the SHA-256 of the bytes. Two writes of the same bytes share one, as on S3, so a
  compare-and-swap cannot tell A from A after B. Whoever cares writes a nonce or a revision into
  the bytes, as records do. A time stamp would tell them apart on a local disk, but some network
  filesystems round it after the fact, and a false "it changed" kills a healthy process.
- Ages compare two stamps of the filesystem's own clock, so workers whose clocks disagree agree.

Not held: `flock` must reach every worker that mounts the filesystem. On a local disk, NFS and
MooseFS it does. Folders that are links are not followed, nor are objects that are links.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage import (
    MAX_PAGE,
    ChecksumMismatch,
    FileFacts,
    FolderPage,
    InvalidKey,
    ObjectChanged,
    ObjectExists,
    ObjectFacts,
    ObjectNotFound,
    Page,
    Stored,
    age_at,
    check_key,
    check_prefix,
    check_range,
)
from stores.local import files as local_files
from stores.local.locks import Locks, left_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Two keys that share a lock wait for each other, but never wrongly; 256 make that rare.
_LOCKS = 256
#: A file nobody has written to for so long lost its writer. Were that wrong, the writer's rename
#: would fail as `StorageUnavailable` and nothing would be damaged.
_ABANDONED_SECONDS = 3600.0
#: Nothing is there, or a part of the path is an object, or it is a link, a folder or a socket.
_NO_OBJECT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)
#: What an object is called in the claim that takes it.
_REMOVED = "removed"


class LocalObjects:
    """What `LocalStore` does, in the thread that calls it. See `storage.Store`."""

    def __init__(self, root: Path) -> None:
        """Makes nothing yet: the folder appears at the first call."""
        # Resolved once, so that a link met later on is one inside the store.
        self.root = root.resolve()
        self._hidden = self.root / local_files.HIDDEN
        self._locks = Locks(self._hidden / "locks", self._hidden / "writing")
        self._prepared = False

    def get(self, key: str, cached: Stored | None, limit: int | None = None) -> Stored:
        with self._opened(key) as file:
            data, modified = file.read(limit), os.fstat(file.fileno()).st_mtime
            age = age_at(self._now(), modified)  # read first, then look at the clock
        version = _version(data)
        if cached is not None and cached.version == version:
            return cached._replace(modified=modified, age_seconds=age)
        return Stored(data, version, modified, age)

    def stat(self, key: str) -> ObjectFacts:
        with self._opened(key) as file:
            facts = os.fstat(file.fileno())
        return ObjectFacts(facts.st_size, local_files.version_of(facts), facts.st_mtime)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.checked(key)
        check_range(offset, length)
        with self._opened(key) as file:
            return os.pread(file.fileno(), length, offset)

    def write(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with self._at_work(), self._new_file(data) as new:
            self._publish(key, new, path)
        return _version(data)

    def write_over(self, key: str, data: bytes, expected: str | None) -> str:
        """Compare-and-swap. `expected` None: nothing may be there."""
        path, version = self._path(key), _version(data)

        def check() -> bool:
            found = self._found(key)
            if found not in (expected, version):
                if expected is None:
                    raise ObjectExists(f"there is already an object {key!r}")
                raise ObjectChanged(f"object {key!r} is not the version that was read")
            return found == expected  # else it is ours, from a call whose end nobody saw

        # Most who come too late are told so before they write anything.
        with self._at_work():
            if check():
                with self._new_file(data) as new:
                    self._publish(key, new, path, check)
        return version

    def _found(self, key: str) -> str | None:
        try:
            with self._opened(key) as file:
                return _version(file.read())
        except ObjectNotFound:
            return None

    def list(self, prefix: str, start_after: str, limit: int) -> Page:
        limit, folder = min(limit, MAX_PAGE), self._path(check_prefix(prefix) + "_").parent
        with self._at_work():
            rows = list(islice(local_files.walk(folder, prefix, start_after), limit + 1))
            # A folder that is not there lists as empty, unless nothing is there any more.
            self._now()
        more = len(rows) > limit
        return Page(rows[:limit], rows[limit - 1].key if more else None)

    def list_folders(self, prefix: str, start_after: str | None, limit: int) -> FolderPage:
        limit, folder = min(limit, MAX_PAGE), self._path(check_prefix(prefix) + "_").parent
        after = "" if start_after is None else f"{start_after}/"
        with self._at_work():
            names = list(islice(local_files.folders(folder, prefix, after), limit + 1))
            self._now()  # as in `list`
        more = len(names) > limit
        return FolderPage(names[:limit], names[limit - 1] if more else None)

    def delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key) for key in keys]
        with self._at_work():
            for key, path in zip(keys, paths, strict=True):
                self._remove(key, path)
                self._prune(path.parent)

    def upload(self, source: BinaryIO, key: str, transfer: local_files.Transfer) -> FileFacts:
        target, descriptor = self._path(key), source.fileno()
        with self._at_work(), local_files.temporary(self._hidden / "writing") as temporary:
            before = local_files.state(descriptor)
            with temporary.open("xb") as copy:
                facts = local_files.copy(descriptor, copy, transfer)
                local_files.sync(copy)
            if local_files.state(descriptor) != before:
                raise ChecksumMismatch("the file changed while it was read")
            self._publish(key, temporary, target)
        return facts

    def draft(self) -> local_files.Draft:
        """For `begin`, `append` and `publish`, one after the other. Makes nothing."""
        return local_files.Draft(self._hidden / "writing")

    def begin(self, draft: local_files.Draft, key: str) -> None:
        self._path(key)  # so that what could never be published is refused at once
        with self._at_work():
            draft.open()

    def append(self, draft: local_files.Draft, data: bytes) -> None:
        with self._at_work():
            draft.write(data)

    def publish(self, draft: local_files.Draft, key: str) -> FileFacts:
        target = self._path(key)
        with self._at_work():
            facts = draft.sync()
            self._publish(key, draft.path, target)
        return facts

    def download(
        self, key: str, path: Path, expected: FileFacts | None, transfer: local_files.Transfer
    ) -> FileFacts:
        with self._opened(key) as source, local_files.storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with local_files.temporary(path.parent) as temporary:
                with temporary.open("xb") as copy:
                    facts = local_files.copy(source.fileno(), copy, transfer)
                if expected is not None and facts != expected:
                    raise ChecksumMismatch(f"object {key!r} is not the file that was announced")
                temporary.replace(path)
            return facts

    # ---- the filesystem

    def checked(self, key: str) -> str:
        """`key` itself, if it may be one here."""
        if check_key(key).partition("/")[0] == local_files.HIDDEN:
            raise InvalidKey(f"{local_files.HIDDEN!r} is the store's own folder")
        return key

    def _path(self, key: str) -> Path:
        path = self.root / self.checked(key)
        if os.path.realpath(path.parent) != str(path.parent):
            raise InvalidKey("a folder of this key is a link, and links are not followed")
        return path

    def link(self, key: str) -> str:
        """A `file://` URL. Asks nobody."""
        return (self.root / self.checked(key)).as_uri()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Our folders exist, and an `OSError` becomes what a store may raise."""
        with local_files.storage_errors(self.root):
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
            OSError: the clock is no regular file.
        """
        clock = local_files.no_links(self._hidden / "clock", os.O_WRONLY)
        try:
            if not local_files.is_regular(clock):
                raise OSError(errno.EINVAL, "the store's clock is no regular file")
            os.utime(clock)
            return os.fstat(clock).st_mtime
        finally:
            os.close(clock)

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        now = self._now()
        for path in (self._hidden / "writing").iterdir():
            with suppress(OSError):  # what cannot be removed is in nobody's way
                if now - path.stat().st_mtime > _ABANDONED_SECONDS:
                    local_files.discard(path)

    @contextmanager
    def _opened(self, key: str) -> Iterator[FileIO]:
        path = self._path(key)
        with self._at_work():
            try:
                file = FileIO(path, opener=local_files.no_links)
            except OSError as error:
                if error.errno not in _NO_OBJECT:
                    raise
                self._now()
                raise ObjectNotFound(f"there is no object {key!r}") from None
            with file:
                if not local_files.is_regular(file.fileno()):
                    raise ObjectNotFound(f"there is no object {key!r}")
                yield file

    @contextmanager
    def _new_file(self, data: bytes) -> Iterator[Path]:
        """Holds `data`, on the disk, and has no place yet."""
        with local_files.temporary(self._hidden / "writing") as temporary:
            with temporary.open("xb") as file:
                file.write(data)
                local_files.sync(file)
            yield temporary

    def _publish(
        self, key: str, new: Path, path: Path, check: Callable[[], bool] = lambda: True
    ) -> None:
        """Rename into place, if `check` says so. No lock is held while the disk is waited for."""
        with self._locks.held(_lock_of(key), new.replace) as claim:
            if not check():
                return
            made = self._rename(claim, path)
        try:
            local_files.sync_folders(made)
        except (FileNotFoundError, NotADirectoryError):  # it was removed since, with its folder
            self._now()

    def _rename(self, claim: Path, path: Path) -> Sequence[Path]:
        """Returns the folders with new names in them. Making some can race with `_prune`, hence
        the loop."""
        folders = [path.parent, *path.parent.parents]
        folders = folders[: folders.index(self.root) + 1]
        made = folders[:1]
        try:
            for _ in range(100):
                with suppress(FileNotFoundError):
                    claim.replace(path)
                    return made
                if not claim.exists():
                    raise left_behind()
                # Either error may be the race; if a folder is really a file, the rename will say.
                with suppress(FileNotFoundError, FileExistsError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made = folders
        except (NotADirectoryError, IsADirectoryError):
            raise InvalidKey("a key cannot be both an object and a folder of objects") from None
        raise FileNotFoundError(errno.ENOENT, "the folder of the object is removed again and again")

    def _remove(self, key: str, path: Path) -> None:
        """The object, if there is one. A folder is none."""
        try:
            with self._locks.held(_lock_of(key), Path.mkdir) as claim:
                if local_files.is_file(path):
                    self._remove_with(claim, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # A full disk has no room for a folder, and this makes room. One who is frozen in this
            # very moment, on such a disk, removes what is there when it thaws.
            with self._locks.held(_lock_of(key), lambda _: None):
                if local_files.is_file(path):
                    path.unlink()

    def _remove_with(self, claim: Path, path: Path) -> None:
        try:
            path.rename(claim / _REMOVED)
        except FileNotFoundError:
            try:
                claim.rmdir()  # it is there: so the object is not, whatever this mount remembered
            except FileNotFoundError:
                raise left_behind() from None
        else:
            (claim / _REMOVED).unlink()

    def _prune(self, folder: Path) -> None:
        with suppress(OSError):  # it is not empty, or somebody else was faster
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent


def _lock_of(key: str) -> str:
    return f"{zlib.crc32(key.encode()) % _LOCKS:02x}"


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
