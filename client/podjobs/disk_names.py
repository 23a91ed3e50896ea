"""A result's path as a path on this machine's disk. Pure.

A worker runs Linux, where a file may be called `a:b.png` or `CON`. Names that some disk cannot hold
are written with the odd characters as `%XX`; the caller is told which.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Not allowed in names on Windows; `%` too, so that no two names become one.
_ODD = re.compile(r'[<>:"|?*\\%\x00-\x1f]')
_DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³])(\..*)?", re.IGNORECASE)
_ONLY_WINDOWS = re.compile(r'[<>:"|?*\\\x00-\x1f]')
#: What file systems allow for one part of a path, in bytes of UTF-8.
LONGEST_NAME = 255


def disk_paths(paths: Iterable[str]) -> dict[str, str]:
    """By result path: where it is written, relative to the output folder, with `/`.

    Most paths stay as they are. Paths that differ only in case or normalisation get a number.
    """
    written: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(paths):
        place = "/".join(_part(part) for part in path.split("/"))
        number = 2
        chosen = place
        while _folded(chosen) in taken:
            chosen = _numbered(place, number)
            number += 1
        taken.add(_folded(chosen))
        written[path] = chosen
    return written


def _part(name: str) -> str:
    """One part of a path, as every disk can hold it. Never empty, `.` or `..`."""
    if not name:
        return "%"
    odd = _ONLY_WINDOWS.search(name) or name.endswith((" ", "."))
    if not odd and not _DEVICES.fullmatch(name):
        return _shortened(name)
    escaped = _ODD.sub(_escape, name)
    if escaped.endswith((" ", ".")):
        escaped = escaped[:-1] + f"%{ord(escaped[-1]):02X}"
    if _DEVICES.fullmatch(escaped):
        escaped = f"%{ord(escaped[0]):02X}{escaped[1:]}"
    return _shortened(escaped)


def _escape(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"


def _shortened(name: str) -> str:
    """At most LONGEST_NAME bytes; the ending stays."""
    if len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME:
        return name
    stem, dot, ending = name.rpartition(".")
    tail = f"{dot}{ending}" if stem and len(ending) <= 16 else ""
    room = LONGEST_NAME - len(tail.encode("utf-8", "surrogatepass")) - 4
    kept = name.encode("utf-8", "surrogatepass")[:room].decode("utf-8", "ignore")
    return f"{kept}%CUT{tail}"


def _numbered(place: str, number: int) -> str:
    folder, slash, name = place.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    numbered = f"{stem}~{number}{dot}{ending}" if stem else f"{name}~{number}"
    return f"{folder}{slash}{numbered}"


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
