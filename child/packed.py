"""What is in a zip or a tar, member by member, without believing what it says. Child only.

An archive comes from strangers. What it costs to read is bounded whatever it claims, and what is
in it but a file or a folder is refused. Nothing is written here: that is `child.unpack`.

`tarfile` parses a tar and extracts nothing of it. It would read metadata of any size into memory,
and it takes a damaged header for the end of the archive: `_TarStream` does not let it.
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

from child.context import JobFailed

#: What is read of a file, and held in memory, at a time, in bytes.
CHUNK: Final = 256 << 10
#: A zip may promise this many times its own size. Real files hardly shrink; bombs do, 1000-fold.
MAX_INFLATION: Final = 100
#: A small zip of flat pictures may shrink well; up to this many bytes nobody minds.
HARMLESS_BYTES: Final = 64 << 20
#: Of a zip's directory, which is read in one go. Real entries take about 100 bytes each.
MAX_DIRECTORY_BYTES: Final = 64 << 20
#: Of all that a tar says about one member. Python before 3.11.10 may need a quarter of its square.
MAX_METADATA_BYTES: Final = 16 << 10
#: Of the zeros after a tar's last member.
MAX_PADDING_BYTES: Final = 1 << 20
#: What an xz may need of memory. `xz -9` needs 65 MiB, but a header can ask for 4 GiB.
MAX_XZ_BYTES: Final = 128 << 20
#: Of a whole name, folders included: no S3 key is longer. And of each part, as on a disk.
MAX_NAME_BYTES: Final = 1024
MAX_PART_BYTES: Final = 255

#: In a zip, what made it: MS-DOS, which is what Windows says.
_WINDOWS: Final = 0
_ZIP_ENTRY: Final = b"PK\x01\x02"
#: zipfile unpacks what other methods made in pieces of any size.
_ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Exceptions that zipfile, tarfile, the decompressors and the code below raise on damaged bytes.
_DAMAGE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)

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
    if path.is_absolute() or ".." in parts or re.match("[A-Za-z]:", str(path)):
        return "leads out of it"
    if "\\" in name:
        return "has a backslash in its name, which divides folders on some systems only"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has a name with characters that no name should have"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(p.encode()) > MAX_PART_BYTES for p in parts):
        return "has a name that is too long"
    return None


def why_unsafe_in_zip(member: zipfile.ZipInfo) -> str | None:
    """What forbids to unpack it; None if nothing does."""
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    return why_unsafe(zip_name(member))


def zip_name(member: zipfile.ZipInfo) -> str:
    """The name of a member, folders divided by `/`.

    A zip made on Windows may divide them by backslashes (PowerShell 5 does), which no name there
    can hold; elsewhere a backslash is a character.
    """
    name = member.orig_filename  # `filename` ends before a NUL
    return name.replace("\\", "/") if member.create_system == _WINDOWS else name


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
        start = file.read(tarfile.BLOCKSIZE)
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
            name = zip_name(member)
            yield Member(name, name.endswith("/"), _zip_chunks(archive, member))


def _zip_chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as file:  # never more than the size that it declares
        while chunk := file.read(CHUNK):
            yield chunk


# ---- tar


class _TarStream(io.RawIOBase):
    """The bytes of a tar as `tarfile` wants them: it goes forward, and reads headers only."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read
        self._position = 0
        self._allowed = MAX_METADATA_BYTES
        self._last = b""

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def seek(self, position: int, _whence: int = io.SEEK_SET, /) -> int:
        """Skip to `position`. Raises EOFError, and ValueError for one that was passed."""
        if position < self._position:
            raise ValueError("a size is negative, or there are two")
        for _ in self.chunks(position - self._position):
            pass
        return position

    def read(self, size: int = -1, /) -> bytes:
        """Exactly `size` bytes about a member. Raises EOFError; JobFailed: input_too_large."""
        if size < 0:
            raise ValueError("a size is negative")
        self._allowed -= size
        if self._allowed < 0:
            raise JobFailed(
                "input_too_large", f"It says more than {MAX_METADATA_BYTES} bytes about a member."
            )
        self._last = b"".join(self.chunks(size))
        return self._last

    def chunks(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes. Raises EOFError."""
        end = self._position + size
        while self._position < end:
            chunk = self._read(min(end - self._position, CHUNK))
            if not chunk:
                raise EOFError("it ends in the middle")
            self._position += len(chunk)
            yield chunk

    def next_member(self) -> None:
        """Allow the metadata of another member."""
        self._allowed = MAX_METADATA_BYTES

    def check_end(self) -> None:
        """Raises ValueError unless an empty block was read last, and only zeros follow."""
        if self._last.strip(b"\0"):
            raise ValueError("a header is damaged")
        padding = 0
        while chunk := self._read(CHUNK):
            padding += len(chunk)
            if padding > MAX_PADDING_BYTES or chunk.strip(b"\0"):
                raise ValueError("something follows its end")


def _tar_members(read: Read) -> Iterator[Member]:
    stream = _TarStream(read)
    with tarfile.TarFile(fileobj=stream, encoding="utf-8") as archive:
        while member := archive.next():
            _check_in_tar(member)
            yield Member(member.name, member.isdir(), stream.chunks(member.size))
            # It would keep each member, and what global headers say: any number of both may come.
            archive.members = []  # type: ignore[attr-defined] # typeshed lacks it
            archive.pax_headers = {}
            stream.next_member()
    stream.check_end()


def _check_in_tar(member: tarfile.TarInfo) -> None:
    """Raises JobFailed: input_unsafe; ValueError."""
    if member.issparse() or not (member.isreg() or member.isdir()):
        why: str | None = "is a link, sparse or a special file"
    else:
        why = why_unsafe(member.name)
    if why:
        raise JobFailed("input_unsafe", f"{member.name[:200]!r} {why}.")
    if member.size < 0:
        raise ValueError("a size is negative")


def _is_tar(start: bytes) -> bool:
    try:
        return not start.strip(b"\0") or bool(tarfile.TarInfo.frombuf(start, "utf-8", "replace"))
    except tarfile.HeaderError:
        return False


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
