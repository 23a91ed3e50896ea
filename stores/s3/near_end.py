"""The file at the near end of a transfer: read or written, and hashed in order. Blocking."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO

from storage import ChecksumMismatch, FileFacts, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Digest:
    """What has passed so far."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0

    def update(self, data: bytes | bytearray) -> None:
        self._hash.update(data)
        self._size += len(data)

    @property
    def facts(self) -> FileFacts:
        return FileFacts(self._size, self._hash.hexdigest())


class Source:
    """An open file on its way up, read by position: its owner opens and closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size, self._modified = self._state()

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there, fewer at the end of the file.

        Raises:
            ChecksumMismatch: the file has changed since it was first looked at.
        """
        wanted = min(length, self.size - offset)
        data = os.pread(self._file.fileno(), wanted, offset)
        while more := os.pread(self._file.fileno(), wanted - len(data), offset + len(data)):
            data += more  # some network volumes give less than was asked for
        if len(data) != wanted or self._state() != (self.size, self._modified):
            raise ChecksumMismatch("the file changed while it was read")
        return data

    def _state(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns


class Target:
    """A file on its way down: under another name beside its own until it is whole."""

    def __init__(self, path: Path, digest: Digest) -> None:
        self._path = path
        self._partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        self._digest = digest
        self._file: FileIO | None = None
        #: A thread that nothing waits for any more may be late. It must not write into a file that
        #: was opened since under the same number.
        self._lock = threading.Lock()
        #: It has its name, or never will.
        self.ended = False

    def write(self, bites: Sequence[bytes]) -> None:
        """The next bytes. Raises StorageUnavailable once it is discarded."""
        with self._lock:
            self._check()
            if self._file is None:
                self._file = self._created()
            for bite in bites:
                rest = memoryview(bite)
                while rest:
                    rest = rest[self._file.write(rest) :]
                self._digest.update(bite)

    def appear(self, expected: FileFacts | None) -> None:
        """Take the name. Raises ChecksumMismatch if it is not what was expected."""
        if expected is not None and self._digest.facts != expected:
            raise ChecksumMismatch(f"{self._path.name} arrived with other bytes than announced")
        with self._lock:
            self._check()
            assert self._file is not None, "an empty file, too, is written first"
            self._file.close()
            self._partial.replace(self._path)
            self.ended = True

    def discard(self) -> None:
        """Leave nothing behind, unless it has its name."""
        with self._lock:
            if self._file is not None and not self.ended:
                self._file.close()
                self._partial.unlink(missing_ok=True)
            self.ended = True

    def _created(self) -> FileIO:
        """A new file. Its folder is made only if it is missing, which is cheaper for many files."""
        with suppress(FileNotFoundError):
            return FileIO(self._partial, "xb")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(self._partial, "xb")

    def _check(self) -> None:
        if self.ended:
            raise StorageUnavailable("the transfer was stopped")
