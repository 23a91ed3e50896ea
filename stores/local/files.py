"""What a store in a folder asks of its filesystem: safe copies, listings, clear errors."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from contextlib import ExitStack, contextmanager, suppress
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from storage import FileFacts, Listed, StorageUnavailable
from stores.prefixes import is_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO

#: The store's own folder in its root; never a key.
HIDDEN = ".local-store"
_CHUNK = 1 << 20

_SENTENCES = {
    errno.ENOENT: "is not there any more; was the volume unmounted or the folder removed?",
    errno.ENOSPC: "is on a full disk; free some space or use a larger one",
    errno.EDQUOT: "has reached its disk quota; free some space or raise the quota",
    errno.EROFS: "is on a read-only filesystem; mount it writable or set WORKER_DATA_DIR",
    errno.EACCES: f"may not be used by user {os.getuid()}; change its owner or its mode",
    errno.EPERM: f"may not be used by user {os.getuid()}; change its owner or its mode",
    errno.EIO: "is on a disk that reports input/output errors; replace the disk",
    errno.ESTALE: "is on a network volume that lost track of it; mount the volume again",
}


class Transfer(NamedTuple):
    """What a copy in a thread owes its caller on the event loop."""

    #: Set when the caller is gone: then the copy stops and cleans up.
    abandoned: threading.Event
    on_bytes: Callable[[int], None]


@contextmanager
def transfer(on_bytes: Callable[[int], None] | None) -> Iterator[Transfer]:
    """For as long as the caller waits. Called on the event loop."""
    loop, abandoned = asyncio.get_running_loop(), threading.Event()

    def report(count: int) -> None:
        if on_bytes is not None:
            loop.call_soon_threadsafe(on_bytes, count)

    try:
        yield Transfer(abandoned, report)
    finally:
        abandoned.set()


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageUnavailable` that says what to change."""
    try:
        yield
    except OSError as error:
        known = _SENTENCES.get(error.errno or 0)
        place = os.path.realpath(where)  # not the open folder that `where` may lead through
        raise StorageUnavailable(f"{place} {known or f'cannot be used: {error}'}") from error


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A name nobody else uses. Whatever has it in the end, because of an error, is removed."""
    path = folder / f".{secrets.token_hex(12)}.part"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def copy(source: int, target: BinaryIO, transfer: Transfer) -> FileFacts:
    """Copy and hash an open file in one pass, from its beginning and at constant memory.

    Raises:
        InterruptedError: nobody waits for the end any more.
    """
    digest, size, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
    while True:
        count = os.preadv(source, [buffer], size)
        if transfer.abandoned.is_set():  # also of an empty file, which would get its name
            raise InterruptedError(errno.EINTR, "the transfer was abandoned")
        if not count:
            return FileFacts(size, digest.hexdigest())
        chunk = memoryview(buffer)[:count]
        target.write(chunk)
        digest.update(chunk)
        size += count
        transfer.on_bytes(count)


class Draft:
    """A file that is written as its bytes come, under a name nobody else uses. Blocking."""

    def __init__(self, folder: Path) -> None:
        """Makes nothing yet."""
        self._folder = folder
        self._open = ExitStack()
        self._hash = hashlib.sha256()
        self._size = 0

    def open(self) -> None:
        self.path = self._open.enter_context(temporary(self._folder))
        self._file = self._open.enter_context(self.path.open("xb", buffering=0))

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self._size += len(data)

    def sync(self) -> FileFacts:
        """To the disk. Returns what was written."""
        sync(self._file)
        return FileFacts(self._size, self._hash.hexdigest())

    def discard(self) -> None:
        """Leave nothing under that name, nothing open."""
        self._open.close()


def sync(file: BinaryIO | FileIO) -> None:
    """To the disk, stamped by the same clock as `LocalObjects` reads."""
    file.flush()
    os.utime(file.fileno())
    os.fsync(file.fileno())


def sync_folders(folders: Sequence[Path]) -> None:
    """Names, too, must reach the disk, or a power cut takes back a finished rename."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def version_of(facts: os.stat_result) -> str:
    """Every write makes a new file, so its number and time stamp tell it from the last."""
    return f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"


def walk(folder: Path, prefix: str, start_after: str) -> Iterator[Listed]:
    """The objects below `folder` in key order, from the first one after `start_after`."""
    for row in _in_order(folder, prefix, start_after):
        if row.key.endswith("/"):
            yield from walk(folder / row.key[len(prefix) :], row.key, start_after)
        else:
            yield row


def folders(folder: Path, prefix: str, start_after: str) -> Iterator[str]:
    """Names of folders in `folder` with objects below them, in key order, from the first one after
    the folder `start_after`."""
    for row in _in_order(folder, prefix, prefix + start_after):
        name = row.key[len(prefix) : -1]
        if (
            row.key.endswith("/")
            and f"{name}/" > start_after
            and any(True for _ in walk(folder / name, row.key, ""))
        ):
            yield name


def _in_order(folder: Path, prefix: str, start_after: str) -> Iterator[Listed]:
    """What lies in `folder` after `start_after`, and folders in it that may hold such, by key.

    A folder ends with `/`, so that it sorts among its siblings as the keys in it do. Strings sort
    as their UTF-8 bytes do. Links and strangers are left out. A page takes few of many, and only
    those are looked at and put in order: of the others no more than the name is read.
    """
    if start_after > prefix and not start_after.startswith(prefix):
        return
    after = start_after.removeprefix(prefix) if start_after > prefix else ""
    names: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        every = os.listdir(folder)  # noqa: PTH208 - a path for each would take the longest
        names = [name for name in every if name > after or after.startswith(name)]
    heapify(names)
    while names:
        name = heappop(names)
        if name.endswith("/"):
            yield Listed(prefix + name, 0, 0.0)
        elif prefix + name != HIDDEN and is_key(prefix + name) and (facts := _facts(folder / name)):
            if stat.S_ISREG(facts.st_mode) and name > after:
                yield Listed(prefix + name, facts.st_size, facts.st_mtime, version_of(facts))
            elif stat.S_ISDIR(facts.st_mode) and (
                f"{name}/" > after or after.startswith(f"{name}/")
            ):
                heappush(names, f"{name}/")


def is_file(path: Path) -> bool:
    """Whether there is one, or a link, which is not followed; not a folder."""
    facts = _facts(path)
    return facts is not None and not stat.S_ISDIR(facts.st_mode)


def discard(path: Path) -> None:
    """Remove a file, or a folder and what is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _facts(path: Path) -> os.stat_result | None:
    """Of a link, its own. None: it was removed since."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.stat(follow_symlinks=False)
    return None


def no_links(path: str | Path, flags: int) -> int:
    """Open a file. Refuses a link (ELOOP) and does not wait for a pipe's other end."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def is_regular(descriptor: int) -> bool:
    """Whether an open file is one, and no pipe or device."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def state(descriptor: int) -> tuple[int, int]:
    """Changes when an open file is written to."""
    facts = os.fstat(descriptor)
    return facts.st_size, facts.st_mtime_ns
