"""How far a program is, heard from the lines it prints or read from a file of JSON lines.

Both are bounded: of a burst of lines only the last few are looked at, a line is cut, and a file is
read in portions and may not grow past its limit.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from child.context import JobFailed

#: Of what arrives at a time, so many last lines are searched.
LINES_SEARCHED = 50
#: A longer line is cut, or in a file passed over, in bytes.
LINE_LIMIT = 16 * 1024
#: Read of a progress file at a time, in bytes.
PORTION = 1 << 20
METRICS_LIMIT = 32
_STEP_LIMIT = 1 << 53


class Reported(NamedTuple):
    """What a program said last of how far it is."""

    step: int
    total: int | None
    message: str
    metrics: dict[str, float]


class PrintedLines:
    """The lines that a program prints: a carriage return ends one, too."""

    def __init__(self, pattern: str | None) -> None:
        self._pattern = re.compile(pattern) if pattern is not None else None
        self._partial = ""
        #: What the newest line that matched says.
        self.newest: Reported | None = None
        #: The last of what was printed, for the cause of an end.
        self.tail = ""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, in any portions."""
        text = chunk.decode(errors="replace")
        self.tail = (self.tail + text)[-LINE_LIMIT:]
        if self._pattern is None:
            return
        *lines, rest = re.split(r"[\r\n]", self._partial + text)
        self._partial = rest[:LINE_LIMIT]
        # A bar's newest state has no end yet: the next one begins with the return.
        for line in reversed([*lines, rest][-LINES_SEARCHED:]):
            match = self._pattern.search(line[:LINE_LIMIT])
            if match is not None and (seen := _seen(match.groupdict())) is not None:
                self.newest = seen
                return


class ProgressFile:
    """A file to which a program appends one JSON object a line."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = 0
        self._offset = 0
        self._partial = b""

    def read(self) -> Reported | None:
        """What the newest line says that came since the last look.

        Raises:
            JobFailed: the file has grown past its limit (`progress_flood`).
        """
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # not there yet; or a link, which is not followed
            return None
        try:
            return self._read(file)
        finally:
            os.close(file)

    def _read(self, file: int) -> Reported | None:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > self._max_bytes:
            raise JobFailed(
                "progress_flood", f"The program's progress file grew past {self._max_bytes} bytes."
            )
        if status.st_ino != self._file or status.st_size < self._offset:  # begun anew
            self._file, self._offset, self._partial = status.st_ino, 0, b""
        newest = None
        # What is appended meanwhile is for the next look, which sees anew how large it has become.
        while left := status.st_size - self._offset:
            chunk = os.pread(file, min(PORTION, left), self._offset)
            if not chunk:  # it was cut
                break
            self._offset += len(chunk)
            newest = self._newest(chunk) or newest
        return newest

    def _newest(self, chunk: bytes) -> Reported | None:
        *lines, rest = (self._partial + chunk).split(b"\n")
        self._partial = rest if len(rest) <= LINE_LIMIT else b"x" * (LINE_LIMIT + 1)
        for line in reversed(lines[-LINES_SEARCHED:]):
            if len(line) <= LINE_LIMIT and (seen := _seen(_object(line))) is not None:
                return seen
        return None


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _seen(fields: Mapping[str, Any]) -> Reported | None:
    """What `fields` say, if they name a step; whatever else is a number is a metric."""
    step = _number(fields.get("step"))
    if step is None or not 0 <= step < _STEP_LIMIT:
        return None
    total = _number(fields.get("total"))
    if total is not None and not 0 < total < _STEP_LIMIT:
        total = None
    figures = {
        name: _number(value)
        for name, value in fields.items()
        if name not in ("step", "total", "message", "self") and len(name) <= 64
    }
    metrics = {name: value for name, value in figures.items() if value is not None}
    return Reported(
        int(step),
        int(total) if total is not None else None,
        str(fields.get("message") or ""),
        dict(list(metrics.items())[:METRICS_LIMIT]),
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
