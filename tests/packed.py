"""Archives for tests, sound and otherwise, as bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

MIB = 1 << 20

#: Its name and content.
File = tuple[str, bytes]


def zip_of(*members: File | tuple[zipfile.ZipInfo, bytes], method: int = 8) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for member, content in members:
            info = member if isinstance(member, zipfile.ZipInfo) else zipfile.ZipInfo(member)
            if isinstance(member, str):
                info.filename = member  # which cuts it at a NUL
            archive.writestr(info, content, method)
    return stream.getvalue()


def tar_of(*members: File | tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = member
                archive.addfile(tar_info(name, size=len(content)), io.BytesIO(content))
    return stream.getvalue()


def tar_info(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    if name.endswith("/"):
        info.type = tarfile.DIRTYPE
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def zip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


Packed = Callable[..., bytes]
FORMATS: dict[str, Packed] = {
    "zip": zip_of,
    "tar": tar_of,
    "tar.gz": lambda *files: gzip.compress(tar_of(*files)),
    "tar.bz2": lambda *files: bz2.compress(tar_of(*files)),
    "tar.xz": lambda *files: lzma.compress(tar_of(*files)),
}


def headers(kind: bytes, size: int, count: int = 1) -> bytes:
    """A small tar.gz: `count` times the header of metadata and `size` zeros, then a file `a`."""
    info = tar_info("about", type=kind, size=size).tobuf()
    piece = gzip.compress(bytes(min(size, 16 * MIB)))
    whole = gzip.compress(info) + piece * max(1, size // (16 * MIB))
    return whole * count + gzip.compress(tar_of(("a", b"1")))


def changed(content: bytes, place: int, value: bytes) -> bytes:
    return content[:place] + value + content[place + len(value) :]
