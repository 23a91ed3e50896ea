"""What is in a zip or a tar, member by member, without believing what it says. Child only.

An archive comes from strangers. What it costs to read is bounded whatever it claims, and what is
in it but a file or a folder is refused. Nothing is written here: that is `jobs.unpack`.

Tars are read here and not by `tarfile`, of which only the parser of a header is used: it reads
metadata of any size into memory, and takes a damaged header for the end of the archive.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, TypeVar

from jobs.context import JobFailed

#: What is read of a file, and held in memory, at a time, in bytes.
CHUNK: Final = 256 << 10
#: A zip may promise this many times its own size. Real files hardly shrink; bombs do, 1000-fold.
MAX_INFLATION: Final = 100
#: A small zip of flat pictures may shrink well; up to this many bytes nobody minds.
HARMLESS_BYTES: Final = 64 << 20
#: Of a zip's directory, which is read in one go. Real entries take about 100 bytes each.
MAX_DIRECTORY_BYTES: Final = 64 << 20
#: Of all that a tar says about one member, and of the zeros after its last.
MAX_METADATA_BYTES: Final = 1 << 20
#: What an xz may need of memory. `xz -9` needs 65 MiB, but a header can ask for 4 GiB.
MAX_XZ_BYTES: Final = 128 << 20
#: Of a whole name, folders included: no S3 key is longer. And of each part, as on a disk.
MAX_NAME_BYTES: Final = 1024
MAX_PART_BYTES: Final = 255

_ZIP_ENTRY: Final = b"PK\x01\x02"
#: zipfile unpacks what other methods made in pieces of any size.
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BLOCK: Final = tarfile.BLOCKSIZE
_TAR_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
#: Headers that are about the next one, or about all.
_TAR_METADATA: Final = (
    *_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
#: What zipfile, the decompressors and the code below raise on bytes that are not as they should be.
_DAMAGE: Final = (
    zipfile.BadZipFile, tarfile.HeaderError, zlib.error, lzma.LZMAError, struct.error,
    EOFError, OSError, ValueError, LookupError, ArithmeticError, RuntimeError,
)  # fmt: skip

Read = Callable[[int], bytes]
T = TypeVar("T")


class Member(NamedTuple):
    """A file or a folder. `chunks` is to be read to its end before the next member is asked for."""

    name: str
    folder: bool
    chunks: Iterator[bytes]


def why_unsafe(name: str) -> str | None:
    """What forbids to make a file of that name below a folder; None if nothing does."""
    path = PurePosixPath(name)
    parts = path.parts
    if path.is_absolute() or ".." in parts or "\\" in name or re.match("[A-Za-z]:", str(path)):
        return "leads out of it"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has a name with characters that no name should have"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(p.encode()) > MAX_PART_BYTES for p in parts):
        return "has a name that is too long"
    return None


def why_unsafe_in_zip(member: zipfile.ZipInfo) -> str | None:
    """What forbids to unpack it; None if nothing does."""
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    return why_unsafe(member.orig_filename)  # `filename` ends before a NUL


def check_methods(members: Iterable[zipfile.ZipInfo]) -> None:
    """Raises NotImplementedError for what cannot be unpacked in bounded memory."""
    for member in members:
        if member.compress_type not in _ZIP_METHODS:
            raise NotImplementedError(
                f"{member.filename!r} is compressed in a way that is not supported"
            )


def promises_too_much(members: Iterable[zipfile.ZipInfo], size: int) -> bool:
    """Whether a zip of `size` bytes is a bomb by its own account."""
    promised = sum(member.file_size for member in members)
    return promised > max(HARMLESS_BYTES, MAX_INFLATION * size)


def read_archive(path: Path, max_members: int) -> Iterator[Member]:
    """The members of a zip or of a tar, plain or compressed by gzip, bzip2 or xz, in their order.

    Their names are safe, but may come twice. Raises JobFailed: input_broken, input_unsafe, and
    input_too_large for what would take too much memory to list; also while chunks are read.
    """
    for member in _sound(_members(path, max_members)):
        yield member._replace(chunks=_sound(member.chunks))


def _sound(items: Iterator[T]) -> Iterator[T]:
    try:
        yield from items
    except _DAMAGE as error:
        raise JobFailed(
            "input_broken", f"It is damaged, or no zip or tar that can be unpacked here: {error}"
        ) from error


def _members(path: Path, max_members: int) -> Iterator[Member]:
    with path.open("rb") as file:
        start = file.read(_BLOCK)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            yield from _tar_members(gzip.GzipFile(fileobj=file).read)
        elif start.startswith(b"BZh"):
            yield from _tar_members(bz2.BZ2File(file).read)
        elif start.startswith(b"\xfd7zXZ\0"):
            yield from _tar_members(_XzReader(file.read).read)
        elif _is_tar(start):
            yield from _tar_members(file.read)
        else:  # a zip is told by its end: before it there may be anything, such as a program
            yield from _zip_members(path, max_members)


# ---- zip


class _ZipFile(io.FileIO):
    """A zip, of which no more is read than fits in memory.

    zipfile reads the directory in one go and makes a large object of each entry in it.
    """

    def __init__(self, path: Path, max_members: int) -> None:
        super().__init__(path)
        self._max_members = max_members
        self.listed = False

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file does. Raises JobFailed: input_too_large, while it is being listed."""
        if self.listed or size is None or size < 0:  # the latter is for its last 64 KiB
            return super().read(size)
        if size > MAX_DIRECTORY_BYTES:
            raise JobFailed("input_too_large", f"Its directory has {size} bytes.")
        data = super().read(size)
        if data.count(_ZIP_ENTRY) > self._max_members:
            raise JobFailed(
                "input_too_large", f"It has more than the {self._max_members} files allowed."
            )
        return data


def _zip_members(path: Path, max_members: int) -> Iterator[Member]:
    with _ZipFile(path, max_members) as file, zipfile.ZipFile(file) as archive:
        file.listed = True
        members = archive.infolist()
        for member in members:
            if why := why_unsafe_in_zip(member):
                raise JobFailed("input_unsafe", f"{member.orig_filename[:200]!r} {why}.")
        check_methods(members)
        if promises_too_much(members, path.stat().st_size):
            raise JobFailed(
                "input_too_large", f"It would unpack to more than {MAX_INFLATION} times its size."
            )
        for member in members:
            folder = member.orig_filename.endswith("/")
            yield Member(member.orig_filename, folder, _zip_chunks(archive, member))


def _zip_chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as file:  # never more than the size that it declares
        while chunk := file.read(CHUNK):
            yield chunk


# ---- tar


class _Header(NamedTuple):
    name: str
    folder: bool
    #: Of its content, in bytes.
    size: int


def _tar_members(read: Read) -> Iterator[Member]:
    while header := _next_header(read):
        yield Member(header.name, header.folder, _tar_chunks(read, header.size))
    rest = b"".join(_up_to(read, MAX_METADATA_BYTES + 1))
    if len(rest) > MAX_METADATA_BYTES or rest.strip(b"\0"):
        raise ValueError("something follows its end")


def _next_header(read: Read) -> _Header | None:
    """The next file or folder, with all that is said about it before it; None at the end."""
    allowed = MAX_METADATA_BYTES
    long_name, records = b"", dict[bytes, bytes]()
    while True:
        block = _exactly(read, _BLOCK)
        if not block.strip(b"\0"):
            return None
        info = _parsed(block)
        if info.type not in _TAR_METADATA:
            return _described(info, long_name, records)
        allowed -= _BLOCK + info.size
        if allowed < 0:
            raise JobFailed(
                "input_too_large", f"It says more than {MAX_METADATA_BYTES} bytes about a member."
            )
        data = b"".join(_tar_chunks(read, info.size))
        if info.type in _PAX:
            records = _pax_records(data)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = data.rstrip(b"\0")


def _described(info: tarfile.TarInfo, long_name: bytes, records: dict[bytes, bytes]) -> _Header:
    """What `info` is about, which earlier headers may have given another name and size."""
    told = records.get(b"path") or long_name
    name = told.decode(errors="surrogateescape") or info.name
    sparse = any(key.startswith(b"GNU.sparse.") for key in records)
    if sparse or info.type not in (*_TAR_FILES, tarfile.DIRTYPE):
        raise JobFailed("input_unsafe", f"{name[:200]!r} is a link, sparse or a special file.")
    if why := why_unsafe(name):
        raise JobFailed("input_unsafe", f"{name[:200]!r} {why}.")
    if info.type == tarfile.DIRTYPE:
        return _Header(name, folder=True, size=0)
    return _Header(name, folder=False, size=_not_negative(int(records.get(b"size") or info.size)))


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE\\n` again and again. Raises ValueError."""
    records, start = dict[bytes, bytes](), 0
    while start < len(data):
        space = data.index(b" ", start)
        end = start + int(data[start:space])
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ValueError("an extended header is damaged")
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        records[key] = value
        start = end
    return records


def _is_tar(start: bytes) -> bool:
    try:
        return not start.strip(b"\0") or bool(_parsed(start))
    except tarfile.HeaderError:
        return False


def _parsed(block: bytes) -> tarfile.TarInfo:
    """A header. Raises tarfile.HeaderError; or ValueError for a size below 0."""
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    _not_negative(info.size)
    return info


def _not_negative(size: int) -> int:
    if size < 0:
        raise ValueError("a size is negative")
    return size


def _tar_chunks(read: Read, size: int) -> Iterator[bytes]:
    """`size` bytes, and then up to the next block. Raises EOFError, ValueError."""
    left = size
    for chunk in _up_to(read, size):
        left -= len(chunk)
        yield chunk
    if left:
        raise EOFError("it ends in the middle")
    _exactly(read, -size % _BLOCK)


def _exactly(read: Read, size: int) -> bytes:
    """That many bytes. Raises EOFError."""
    data = b"".join(_up_to(read, size))
    if len(data) < size:
        raise EOFError("it ends in the middle")
    return data


def _up_to(read: Read, size: int) -> Iterator[bytes]:
    """That many bytes, fewer at the end."""
    while size > 0 and (chunk := read(min(size, CHUNK))):
        size -= len(chunk)
        yield chunk


class _XzReader:
    """An xz, unpacked in bounded memory, which lzma's own file does not promise."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._decoder = _xz_decoder()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end. Raises EOFError, lzma.LZMAError."""
        data = b""
        while not data:
            packed = b""
            if self._decoder.eof:  # another stream may follow
                packed = (self._decoder.unused_data or self._read(CHUNK)).lstrip(b"\0")
                if not packed:
                    break
                self._decoder = _xz_decoder()
            elif self._decoder.needs_input and not (packed := self._read(CHUNK)):
                raise EOFError("it ends in the middle")
            data = self._decoder.decompress(packed, size)
        return data


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_BYTES)
