"""Names of files: on a disk, as text for callers, and in a key of the store. Pure.

The three forms of a path map to one another without loss:

- On a disk a name is bytes; Python's `str` for it holds bytes that are not UTF-8 as surrogates.
- Callers see text. It is the name itself, but JSON has no form for bytes that are not UTF-8: they
  are written as `\\xe9`. A backslash that would read like that is written as `\\x5c`.
- A key holds most characters as they are. The others are written as `%{3000}`, by code point. A
  path that is too long then gets a key made of its hash; manifests hold its true name.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import Any, Final

#: Bytes of a path in a key: what the longest prefix of an artifact or an input leaves it.
MAX_IN_KEY: Final = 700
#: File systems take no longer name, and every store takes the same keys.
MAX_PART_BYTES: Final = 255
#: Bytes of a path on a disk.
MAX_PATH_BYTES: Final = 1024
_UNDECODED: Final = re.compile("[\udc80-\udcff]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_LIKE_A_BYTE: Final = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_BYTE: Final = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
_LIKE_AN_ESCAPE: Final = re.compile(r"%(?=\{[0-9A-F]*\})")
_ESCAPE: Final = re.compile(r"%\{([0-9A-F]{2,6})\}")
_HASHED: Final = re.compile(r"%\{\}[0-9a-f]{64}")


def shown(path: str) -> str:
    """The text that callers see, of a path on a disk."""
    text = _LIKE_A_BYTE.sub(r"\\x5c", path)
    return _UNDECODED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)


def on_disk(path: str) -> str:
    """The path on a disk, of the text that callers see."""

    def byte(found: re.Match[str]) -> str:
        code = int(found[1], 16)
        return "\\" if code == ord("\\") else chr(0xDC00 + code)

    return _BYTE.sub(byte, path)


def json_text(value: Any) -> str:
    """`value` as JSON whose strings can all be encoded. Raises ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _SURROGATE.sub(lambda found: f"\\{_surrogate(found[0])}", text)


def _surrogate(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def relative(path: str) -> str:
    """`path` itself, if a file below a folder may be called so. Raises ValueError otherwise."""
    parts = path.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError("must be a relative path, parts divided by single '/', without '..'")
    if "\0" in path:
        raise ValueError("must not hold a NUL")
    if _SURROGATE.search(path):
        raise ValueError("must be valid Unicode")
    name = on_disk(path)
    if max(map(_size, name.split("/"))) > MAX_PART_BYTES or _size(name) > MAX_PATH_BYTES:
        raise ValueError(
            f"must have at most {MAX_PART_BYTES} bytes in each part, {MAX_PATH_BYTES} in all"
        )
    return path


def is_relative(path: str) -> bool:
    """Whether `path` stays below the folder that it is looked up in, links aside."""
    try:
        relative(path)
    except ValueError:
        return False
    return True


def is_for_keys(character: str) -> bool:
    """Whether a key holds `character` as it is.

    One that this Python's tables do not know yet is held: a newer Python must find the same key.
    """
    if character.isprintable():
        return character != "\\"
    code = ord(character)
    unassigned = unicodedata.category(character) == "Cn"
    return unassigned and code & 0xFFFE != 0xFFFE and not 0xFDD0 <= code <= 0xFDEF


def in_key(path: str) -> str:
    """The part of a key that stands for `path`, the text that callers see."""
    if _HASHED.fullmatch(path):
        return path  # as a listing shows a key whose path no manifest has told yet
    text = _LIKE_AN_ESCAPE.sub("%{25}", path)
    if not text.isprintable() or "\\" in text:
        text = "".join(each if is_for_keys(each) else _escaped(each) for each in text)
    text = text if unicodedata.is_normalized("NFC", text) else _normalized(text)
    if _size(text) <= MAX_IN_KEY and max(map(_size, text.split("/"))) <= MAX_PART_BYTES:
        return text
    return f"%{{}}{hashlib.sha256(path.encode(errors='surrogatepass')).hexdigest()}"


def from_key(rest: str) -> str | None:
    """The path of which `rest` is the `in_key`, or a hashed key itself; None if there is none."""
    path = _ESCAPE.sub(lambda found: chr(min(int(found[1], 16), 0x10FFFF)), rest)
    return path if is_relative(path) and in_key(path) == rest else None


def _normalized(text: str) -> str:
    """`text` with each character escaped that would be joined to one before it, or replaced."""
    parts, before = list[str](), ""
    for character in text:
        if unicodedata.is_normalized("NFC", before + character):
            parts.append(character)
            before = before + character if unicodedata.combining(character) else character
        else:
            parts.append(_escaped(character))
            before = "}"
    return "".join(parts)


def _escaped(character: str) -> str:
    return f"%{{{ord(character):02X}}}"


def _size(name: str) -> int:
    return len(name.encode(errors="surrogateescape"))
