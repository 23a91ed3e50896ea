"""The file at the near end of a transfer: read or written in order, hashed on the way. Blocking."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import threading
from contextlib import suppress
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, Any

from storage import ChecksumMismatch, FileFacts, StorageUnavailable

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes. Large enough that a request's overhead is small, small enough to repeat lightly.
PART = 8 << 20
#: S3 takes no more; a file beyond 80 GB goes in larger ones.
MAX_PARTS = 10_000


def part_size(size: int) -> int:
    """Of each part but the last of a file with `size` bytes: R2 takes no others than equal ones."""
    return max(PART, math.ceil(size / MAX_PARTS))


class Stop(threading.Event):
    """Tells a request in another thread that nobody wants it any more."""

    def check(self) -> None:
        if self.is_set():
            raise StorageUnavailable("the transfer was stopped")


def buffer(size: int) -> memoryview:
    """Memory that goes back to the system once it is free. malloc would keep as much again.

    Private and in huge pages, where there are any: to touch it first takes a tenth of the time. A
    page of 2 MiB that two buffers share at their edge goes back with the second of them.
    """
    if not size:
        return memoryview(bytearray())
    memory = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(MADV_HUGEPAGE)
    return memoryview(memory)


class Body(RawIOBase):
    """What boto3 sends, in small bites, so that it can be stopped between them."""

    def __init__(self, data: memoryview, stop: Stop) -> None:
        self._data = data
        self._stop = stop
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        self._stop.check()
        bite = self._data[self._at : self._at + len(into)]
        into[: len(bite)] = bite
        self._at += len(bite)
        return len(bite)

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        self._at = offset + {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: len(self._data)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class Source:
    """A file on its way up.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._at_first = os.fstat(self._file.fileno())
        self._hash = hashlib.sha256()
        self._read = 0
        self._part = part_size(self._at_first.st_size)
        #: How often `read` has something to give; at least 1.
        self.parts = max(1, math.ceil(self._at_first.st_size / self._part))

    def read(self) -> memoryview:
        """The next part: full-sized, but for the last."""
        data = buffer(min(self._part, self._at_first.st_size - self._read))
        if self._file.readinto(data) < len(data):
            raise self._changed()
        self._hash.update(data)
        self._read += len(data)
        return data

    def read_whole(self) -> memoryview:
        """All of a file of one part, as `verify` says; and the file is closed."""
        data = self.read()
        self.verify()
        self.close()
        return data

    def verify(self) -> None:
        """Raises ChecksumMismatch if what was read is not, all of it, one state of the file."""
        now = os.fstat(self._file.fileno())
        before = self._at_first
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise self._changed()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        """Nothing is left to be closed."""
        return self._file.closed

    @property
    def facts(self) -> FileFacts:
        """What was read."""
        return FileFacts(self._read, self._hash.hexdigest())

    def _changed(self) -> ChecksumMismatch:
        return ChecksumMismatch(f"{self._path.name} changed while it was read")


class Target:
    """A file on its way down: under another name beside its own until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        self._file = self._partial.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._written = 0
        #: It has its name; nothing is left to be discarded.
        self.appeared = False

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        rest = data
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self._written += len(data)

    def appear(self, expected: FileFacts | None) -> None:
        """Take the name. Raises ChecksumMismatch if it is not what was expected."""
        if expected is not None and self.facts != expected:
            raise ChecksumMismatch(f"{self._path.name} arrived with other bytes than announced")
        self._file.close()
        self._partial.replace(self._path)
        self.appeared = True

    def write_whole(self, data: memoryview, expected: FileFacts | None) -> None:
        """All bytes, and then as `appear`."""
        self.write(data)
        self.appear(expected)

    def discard(self) -> None:
        """Leave nothing behind but what has appeared."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    @property
    def facts(self) -> FileFacts:
        """What was written."""
        return FileFacts(self._written, self._hash.hexdigest())
