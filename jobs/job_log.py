"""What a job prints: the newest of it in files of bounded size, the very last of it in RAM."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import BinaryIO, Final

#: A longer line is cut there, in bytes.
LINE_LIMIT: Final = 16 * 1024
#: Bytes per file. There are two: `log.txt`, and the one before it, `log.1.txt`.
FILE_LIMIT: Final = 4 * 1024 * 1024
_TAIL_LINES: Final = 200
_TAIL_LINE_LIMIT: Final = 1000


class JobLog:
    """Takes bytes as they come and keeps them by lines, as a terminal would show them.

    A carriage return starts the line over, so that of a progress bar only its newest state is
    kept. A disk that is full or broken costs the files, never the job.
    """

    def __init__(self, folder: Path) -> None:
        """Begin `folder/log.txt`. Raises OSError."""
        self._path = folder / "log.txt"
        self._file: BinaryIO | None = self._path.open("wb", buffering=0)
        self._size = 0
        self._line = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, in any portions."""
        *ended, rest = (self._line + chunk).split(b"\n")
        lines = [_shown(line)[:LINE_LIMIT] for line in ended]
        returned = b"\r" if rest.endswith(b"\r") else b""
        self._line = _shown(rest)[:LINE_LIMIT] + returned
        self._keep(lines)

    def tail(self, lines: int) -> list[str]:
        """The last lines, each cut at 1000 characters, the unfinished one included."""
        last = [_readable(_shown(self._line))] if self._line else []
        return [*self._tail, *last][-lines:] if lines > 0 else []

    def close(self) -> None:
        """Keep the unfinished line, and let go of the file."""
        if self._line:
            self.feed(b"\n")
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, lines: list[bytes]) -> None:
        if not lines:
            return
        self._tail.extend(_readable(line) for line in lines[-_TAIL_LINES:])
        if self._file is None:
            return
        try:
            self._write(b"\n".join(lines) + b"\n")
        except OSError as error:
            self._file.close()
            self._file = None
            self._tail.append(f"(the log file ends here: {error.strerror})")

    def _write(self, text: bytes) -> None:
        assert self._file is not None
        if self._size + len(text) > FILE_LIMIT:
            self._file.close()
            os.replace(self._path, self._path.with_name("log.1.txt"))  # noqa: PTH105 - atomic
            self._file = self._path.open("wb", buffering=0)
            self._size = 0
        self._file.write(text)
        self._size += len(text)


def _shown(line: bytes) -> bytes:
    """What a terminal shows of a line: the text after the last return that text came after."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _readable(line: bytes) -> str:
    return line[: 4 * _TAIL_LINE_LIMIT].decode(errors="replace")[:_TAIL_LINE_LIMIT]
