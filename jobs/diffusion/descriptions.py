"""Take out of a PNG what describes it and is not the picture: texts and color profiles. Pure.

Pillow reads these before the pixels and refuses a file in which one is large or damaged. Layout:
PNG specification, third edition, sections 5.2 (signature), 5.3 (chunks) and 11.3.3.
"""

from __future__ import annotations

from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_DESCRIPTIONS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
#: A chunk is its length, its name, its data and a checksum.
_AROUND: Final = 12


def without_descriptions(data: bytes) -> bytes:
    """`data` without such chunks; unchanged if it is no PNG. Never raises."""
    if not data.startswith(_SIGNATURE):
        return data
    kept, at = [_SIGNATURE], len(_SIGNATURE)
    while at < len(data):
        end = at + _AROUND + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _DESCRIPTIONS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)
