"""The file at the near end of a transfer: read or written, and hashed in order. Blocking."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import threading
from contextlib import suppress
from io import FileIO
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, BinaryIO

from storage import ChecksumMismatch, FileFacts, StorageUnavailable

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes. Large enough that a request's overhead is small, small enough to repeat lightly.
PART = 8 << 20
#: Bytes. What is no larger waits for no room, and its memory is not kept.
SMALL = 1 << 20
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


class Memory:
    """Buffers for parts, used again while transfers run, and the system's again when none does.

    For the kernel, pages that are new are most of the work of a transfer: it fills them with zeros.
    """

    def __init__(self, most: int) -> None:
        """Keeps at most so many parts."""
        self._most = most
        self._free: list[mmap] = []
        self._users = 0

    def lend(self, size: int) -> memoryview:
        """So many bytes, of any content. From any thread."""
        if size <= SMALL:
            return memoryview(bytearray(size))
        if size > PART:
            return memoryview(_pages(size))
        try:
            pages = self._free.pop()
        except IndexError:
            pages = _pages(PART)
        return memoryview(pages)[:size]

    def take_back(self, part: memoryview) -> None:
        """What was lent, once nobody can write into it any more. What is not given back is freed
        with its last user: a request that was given up may still be at work on it."""
        pages = part.obj
        if isinstance(pages, mmap) and len(pages) == PART and len(self._free) < self._most:
            self._free.append(pages)

    def enter(self) -> None:
        """A transfer begins."""
        self._users += 1

    def leave(self) -> None:
        """A transfer has ended."""
        self._users -= 1
        if not self._users:
            self._free.clear()


def _pages(size: int) -> mmap:
    """Memory of its own, in huge pages where there are any; from malloc it would not go back."""
    pages = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(MADV_HUGEPAGE)
    return pages


class Body:
    """What is sent, in bites, so that it can be stopped between them."""

    def __init__(self, data: memoryview, stop: Stop, *, once: bool = False) -> None:
        #: Sent anew, it would be refused because of its own success.
        self.once = once
        self._data = data
        self._stop = stop
        self._at = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int) -> bytes:
        """Up to `size` more, none at the end."""
        self._stop.check()
        bite = bytes(self._data[self._at : self._at + size])
        self._at += len(bite)
        return bite

    def seek(self, offset: int) -> None:
        """Go on from there."""
        self._at = offset

    def sha256(self) -> str:
        """Of all of it, in hex."""
        return hashlib.sha256(self._data).hexdigest()


class Source:
    """A file on its way up, which its owner has opened and closes."""

    def __init__(self, file: BinaryIO, memory: Memory) -> None:
        self._file = file
        self._memory = memory
        self._hash = hashlib.sha256()
        self._read = 0
        self._whole: memoryview | None = None
        self._at_first = os.fstat(file.fileno())
        self.size = self._at_first.st_size
        self._part = part_size(self.size)
        #: How often `read` has something to give.
        self.parts = math.ceil(self.size / self._part)

    def read(self) -> memoryview:
        """The next part: full-sized, but for the last."""
        data = self._memory.lend(min(self._part, self.size - self._read))
        filled = 0
        while filled < len(data):
            came = os.preadv(self._file.fileno(), [data[filled:]], self._read + filled)
            if not came:
                raise self._changed()
            filled += came
        self._hash.update(data)
        self._read += len(data)
        return data

    def whole(self) -> memoryview:
        """All of a file that fits into one part, as `verify` says, read once."""
        if self._whole is None:
            data = self.read()
            self.verify()
            self._whole = data
        return self._whole

    def verify(self) -> None:
        """Raises ChecksumMismatch if what was read is not, all of it, one state of the file."""
        now = os.fstat(self._file.fileno())
        before = self._at_first
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise self._changed()

    @property
    def facts(self) -> FileFacts:
        """What was read."""
        return FileFacts(self._read, self._hash.hexdigest())

    def _changed(self) -> ChecksumMismatch:
        return ChecksumMismatch("the file changed while it was read")


class Target:
    """A file on its way down: under another name beside its own until it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        self._file: FileIO | None = None
        self._hash = hashlib.sha256()
        self._hashed = 0
        #: One at a time, as for the file itself: a thread that nobody waits for any more may be
        #: late, and must not write into what has since been opened under this one's number.
        self._lock = threading.Lock()
        self._discarded = False
        #: It has its name; nothing is left to be discarded.
        self.appeared = False

    def write(self, data: memoryview, offset: int) -> None:
        """Bytes that belong there, in any order. Raises StorageUnavailable once it is discarded."""
        with self._lock:
            self._check()
            if self._file is None:
                self._file = self._create()
            while data:
                count = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[count:], offset + count

    def hash(self, data: memoryview) -> None:
        """The next bytes, once they are written."""
        self._hash.update(data)
        self._hashed += len(data)

    def appear(self, expected: FileFacts | None) -> None:
        """Take the name. Raises ChecksumMismatch if it is not what was expected."""
        if expected is not None and self.facts != expected:
            raise ChecksumMismatch(f"{self._path.name} arrived with other bytes than announced")
        with self._lock:
            self._check()
            assert self._file is not None, "an empty file, too, is written first"
            self._file.close()
            self._partial.replace(self._path)
            self.appeared = True

    def discard(self) -> None:
        """Leave nothing behind but what has appeared."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
                self._partial.unlink(missing_ok=True)

    def _create(self) -> FileIO:
        """A file of ours alone. Its folder is made only if it is missing: that is one call less for
        each of many small files."""
        try:
            return FileIO(self._partial, "xb")
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return FileIO(self._partial, "xb")

    def _check(self) -> None:
        if self._discarded:
            raise StorageUnavailable("the transfer was stopped")

    @property
    def facts(self) -> FileFacts:
        """What was written and hashed."""
        return FileFacts(self._hashed, self._hash.hexdigest())
