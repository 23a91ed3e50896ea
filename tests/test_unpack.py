"""Archives among the inputs: what is unpacked, and all that is refused."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from child import packed as packages
from child import unpack as unpacking
from child.context import JobContext, JobFailed, JobStopped
from child.unpack import Unpacked, unpack
from tests.images import give
from tests.packed import FORMATS, MIB, Packed, changed, headers, tar_info, tar_of, zip_info, zip_of

FILES = {"a.txt": b"a", "b/c.txt": b"c" * 5000, "b/d/e": b"", "aligned": b"x" * 1024, "A.txt": b"A"}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def packed(request: pytest.FixtureRequest) -> Packed:
    """Makes an archive of (name, content) pairs, of each format in turn."""
    made: Packed = request.param
    return made


def unpack_bytes(folder: Path, content: bytes, **options: Any) -> Unpacked:
    """Unpack it to `folder/target`."""
    (folder / "archive").write_bytes(content)
    limits = {"max_bytes": 200 * MIB, "max_files": 100_000}
    return unpack(folder / "archive", folder / "target", **limits | options)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(folder: Path, content: bytes, **options: Any) -> str:
    """The code of the refusal, of which nothing is left on the disk."""
    folder.mkdir(parents=True)
    with pytest.raises(JobFailed) as failed:
        unpack_bytes(folder, content, **options)
    assert "'archive'" in str(failed.value)
    assert [path.name for path in folder.parent.rglob("*")] == [folder.name, "archive"]
    return failed.value.code


# ---- what is unpacked


def test_files_and_folders(packed: Packed, tmp_path: Path) -> None:
    taken = unpack_bytes(tmp_path, packed(*FILES.items(), ("empty/", b"")))
    assert contents(tmp_path / "target") == FILES
    assert (tmp_path / "target" / "empty").is_dir()
    assert taken == Unpacked(files=len(FILES) + 3, size=sum(map(len, FILES.values())))


def test_an_archive_of_nothing(packed: Packed, tmp_path: Path) -> None:
    assert unpack_bytes(tmp_path, packed()) == Unpacked(0, 0)
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("packed", [zip_of, FORMATS["tar.gz"]], ids=["zip", "tar.gz"])
def test_ten_thousand_files(packed: Packed, tmp_path: Path) -> None:
    heard: list[int] = []
    files = [(f"{n % 10}/{n}", b"%d" % n) for n in range(10_000)]
    taken = unpack_bytes(tmp_path, packed(*files), on_file=heard.append)
    assert taken.files == 10_010
    assert heard == list(range(1, 10_001))
    assert contents(tmp_path / "target") == dict(files)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_folders_may_be_named_twice_and_in_any_order(packed: Packed, tmp_path: Path) -> None:
    archive = packed(("./", b""), ("./a/b", b"1"), ("a/", b""), ("a/", b""), ("a//c", b"2"))
    unpack_bytes(tmp_path, archive)
    assert contents(tmp_path / "target") == {"a/b": b"1", "a/c": b"2"}


#: Odd, and harmless on a disk: nothing here reads them as anything but names.
ODD_NAMES = [
    "..a",
    "a..",
    "...",
    "~",
    "-rf",
    " ",
    "*",
    "\u2025/a",
    "\uff0e\uff0e/a",
    "..\uff0fa",
    "a\u2215b",
    "\u202e",
    "x" * 255,
    "/".join(["x" * 249] * 4),
    "1:a",
    "a/:b",
    "caf\u00e9",
    "10\u202fAM",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names(packed: Packed, name: str, tmp_path: Path) -> None:
    unpack_bytes(tmp_path, packed((name, b"1")))
    assert contents(tmp_path / "target") == {name: b"1"}


def test_modes_owners_and_times_are_our_own(tmp_path: Path) -> None:
    odd = {"mode": 0o7777, "uid": 1234, "gid": 1234, "mtime": 0}
    archive = tar_of(tar_info("folder/", **odd), tar_info("folder/file", **odd))
    umask = os.umask(0o077)
    try:
        unpack_bytes(tmp_path, archive)
    finally:
        os.umask(umask)
    for path, mode in [("", 0o755), ("folder", 0o755), ("folder/file", 0o644)]:
        found = (tmp_path / "target" / path).stat()
        assert stat.S_IMODE(found.st_mode) == mode
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        assert found.st_mtime > 0


def test_a_zip_after_a_program(tmp_path: Path) -> None:
    unpack_bytes(tmp_path, b"#!/bin/sh\nexit\n" * 100 + zip_of(*FILES.items()))
    assert contents(tmp_path / "target") == FILES


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = zip_of(("a", b"1"))
    unpack_bytes(tmp_path, tar_of(("a.zip", inner)))
    assert contents(tmp_path / "target") == {"a.zip": inner}


def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in FILES.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(content)
    assert b"PK\x06\x06" in stream.getvalue()
    unpack_bytes(tmp_path, stream.getvalue())
    assert contents(tmp_path / "target") == FILES


@pytest.mark.parametrize("version", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_way_to_say_a_long_name(version: int, tmp_path: Path) -> None:
    name = "/".join(["x" * 60] * 3)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=version) as archive:
        archive.pax_headers = {"comment": "of all members"}
        archive.addfile(tar_info(name, size=3), io.BytesIO(b"123"))
    unpack_bytes(tmp_path, stream.getvalue())
    assert contents(tmp_path / "target") == {name: b"123"}


def test_an_xz_of_two_streams(tmp_path: Path) -> None:
    whole = tar_of(*FILES.items())
    unpack_bytes(tmp_path, lzma.compress(whole[:700]) + bytes(8) + lzma.compress(whole[700:]))
    assert contents(tmp_path / "target") == FILES


# ---- what is unsafe


def windows_zip(*names: str) -> bytes:
    """As PowerShell 5 makes it: folders divided by backslashes."""
    members = []
    for name in names:
        info = zipfile.ZipInfo("x")
        info.filename, info.create_system = name, 0
        members.append((info, b"" if name.endswith("\\") else b"1"))
    return zip_of(*members)


def test_a_zip_of_windows_divides_folders_by_backslashes(tmp_path: Path) -> None:
    unpack_bytes(tmp_path, windows_zip("photos\\", "photos\\cats\\a.png", "b.png"))
    assert contents(tmp_path / "target") == {"photos/cats/a.png": b"1", "b.png": b"1"}


@pytest.mark.parametrize("name", ["..\\a", "a\\..\\..\\b", "\\a", "C:\\a", "\\\\server\\a"])
def test_such_a_zip_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "here", windows_zip(name)) == "input_unsafe"


def test_a_backslash_from_elsewhere_is_refused_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="has a backslash in its name"):
        unpack_bytes(tmp_path, zip_of(("a\\b", b"1")))


UNSAFE_NAMES = [
    "../a",
    "..",
    "a/..",
    "a/../../b",
    "b/./../../../a",
    "/a",
    "//a",
    "/../a",
    "\\a",
    "a\\..\\b",
    "C:a",
    "c:/a",
    "./C:/a",
    "",
    "../a\0.txt",
    "a\nb",
    "a\x7f",
    "a\x85",
    "x" * 256,
    "\u00e9" * 128,
    "x" * 1000,
    "/".join(["x" * 200] * 6),
]


@pytest.mark.parametrize("name", UNSAFE_NAMES, ids=ascii)
def test_unsafe_names(packed: Packed, name: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "here", packed(("good", b"1"), (name, b"2"))) == "input_unsafe"


@pytest.mark.parametrize(
    "archive",
    [zip_of(("a\0b", b"1")), tar_of(tar_info("a", pax_headers={"path": "a\0b"}))],
    ids=["zip", "tar"],
)
def test_a_name_does_not_end_at_a_nul(archive: bytes, tmp_path: Path) -> None:
    assert refused(tmp_path / "here", archive) == "input_unsafe"


#: The last of each is the same name once more.
SAME_NAMES = [
    ("a", "a"),
    ("a", "./a"),
    ("a/b", "a//b"),
    ("a", "a/b"),
    ("a/b", "a"),
    ("a/", "a"),
    ("a", "a/"),
    ("a/b/c", "a/b"),
    ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")),
    ("\u00e9/1", unicodedata.normalize("NFD", "\u00e9/2")),
]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("names", SAME_NAMES, ids=ascii)
def test_two_of_a_name(packed: Packed, names: tuple[str, ...], tmp_path: Path) -> None:
    archive = packed(*((name, b"") for name in names))
    assert refused(tmp_path / "here", archive) == "input_unsafe"


SPARSE = {
    "0.0": {"GNU.sparse.size": "9", "GNU.sparse.numblocks": "0"},
    "0.1": {"GNU.sparse.size": "9", "GNU.sparse.map": "0,0"},
    "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
}


def sparse_tar(version: str, content: bytes) -> bytes:
    """A tar of one file with holes, whose content begins with `content`: its map in version 1.0."""
    content += bytes(-len(content) % tarfile.BLOCKSIZE)
    info = tar_info("GNUSparseFile.0/holes", pax_headers=SPARSE[version], size=len(content))
    return tar_of(info).rstrip(b"\0").ljust(3 * tarfile.BLOCKSIZE, b"\0") + content + bytes(1024)


NOT_FILES = {
    "zip link": zip_of((zip_info("link", stat.S_IFLNK | 0o777), b"/etc"), ("link/a", b"1")),
    "zip pipe": zip_of((zip_info("pipe", stat.S_IFIFO | 0o644), b"")),
    "zip device": zip_of((zip_info("device", stat.S_IFCHR | 0o644), b"")),
    "link": tar_of(tar_info("link", type=tarfile.SYMTYPE, linkname="/etc"), ("link/a", b"1")),
    "link within": tar_of(("a", b""), tar_info("b", type=tarfile.SYMTYPE, linkname="a")),
    "long link": tar_of(tar_info("b", type=tarfile.SYMTYPE, linkname="a/" * 200)),
    "hard link": tar_of(("a", b""), tar_info("b", type=tarfile.LNKTYPE, linkname="a")),
    "pipe": tar_of(tar_info("pipe", type=tarfile.FIFOTYPE)),
    "device": tar_of(tar_info("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "disk": tar_of(tar_info("disk", type=tarfile.BLKTYPE, devmajor=8)),
    "unknown": tar_of(tar_info("volume", type=b"V")),
    "sparse": tar_of(tar_info("holes", type=tarfile.GNUTYPE_SPARSE)),
    **{f"sparse, PAX {version}": sparse_tar(version, b"0\n") for version in SPARSE},
    "not UTF-8": tar_of(tar_info("caf\udce9")),
}


@pytest.mark.parametrize("archive", NOT_FILES.values(), ids=NOT_FILES)
def test_what_is_neither_file_nor_folder(archive: bytes, tmp_path: Path) -> None:
    assert refused(tmp_path / "here", archive) == "input_unsafe"


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "precious").touch()
    with pytest.raises(FileExistsError):
        unpack_bytes(tmp_path, zip_of(("a", b"1")))
    assert contents(tmp_path / "target") == {"precious": b""}


# ---- what is too large


def test_bytes_are_counted_while_they_are_written(packed: Packed, tmp_path: Path) -> None:
    archive = packed(("a", b"x" * 600), ("b", b"x" * 600))
    assert refused(tmp_path / "here", archive, max_bytes=1199) == "input_too_large"
    assert unpack_bytes(tmp_path, archive, max_bytes=1200).size == 1200


def test_files_and_folders_are_counted(packed: Packed, tmp_path: Path) -> None:
    archive = packed(("a/b/c", b""), ("d/", b""))
    assert refused(tmp_path / "here", archive, max_files=3) == "input_too_large"
    assert unpack_bytes(tmp_path, archive, max_files=4).files == 4


def test_a_bomb(packed: Packed, tmp_path: Path) -> None:
    archive = packed(("zeros", bytes(16 * MIB)))
    with memory_below(12 * MIB):
        assert refused(tmp_path / "here", archive, max_bytes=MIB) == "input_too_large"


def test_a_zip_that_promises_too_much_is_not_even_begun(tmp_path: Path) -> None:
    heard: list[int] = []
    archive = zip_of(("small", b"1"), ("zeros", bytes(70 * MIB)))
    assert refused(tmp_path / "here", archive, on_file=heard.append) == "input_too_large"
    assert heard == []


def test_a_zip_may_promise_much_as_long_as_it_is_little_in_all(tmp_path: Path) -> None:
    assert unpack_bytes(tmp_path, zip_of(("zeros", bytes(60 * MIB)))).size == 60 * MIB


def test_a_zip_that_lies_about_a_size_is_cut_there(tmp_path: Path) -> None:
    archive = bytearray(zip_of(("zeros", bytes(100 * MIB))))
    struct.pack_into("<L", archive, archive.index(b"PK\x01\x02") + 24, 1000)
    assert refused(tmp_path / "here", bytes(archive), max_bytes=2000) == "input_broken"


def test_a_zip_of_too_many_entries_is_never_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_of(*((str(n), b"") for n in range(1000)))
    monkeypatch.setattr(zipfile, "ZipInfo", None)
    assert refused(tmp_path / "1" / "here", archive, max_files=999) == "input_too_large"
    monkeypatch.setattr(packages, "MAX_DIRECTORY_BYTES", 40_000)
    assert refused(tmp_path / "2" / "here", archive) == "input_too_large"


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def endless_old_sparse() -> bytes:
    """A sparse header of GNU's old format, of which each block says that another one follows."""
    header = bytearray(tar_info("holes", type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    block = bytes(504) + b"\1" + bytes(7)
    return gzip.compress(header) + gzip.compress(block * (1 << 17))


@pytest.mark.parametrize(
    "archive",
    [
        headers(tarfile.XHDTYPE, 1024 * MIB),
        headers(tarfile.XGLTYPE, 1024 * MIB),
        headers(tarfile.GNUTYPE_LONGNAME, 1024 * MIB),
        headers(tarfile.GNUTYPE_LONGLINK, 64 << 10, count=10_000),
        gzip.compress(sparse_tar("1.0", b"9999999999\n" + b"1\n" * (16 * MIB))),
        endless_old_sparse(),
    ],
    ids=["PAX", "PAX for all", "long name", "one after another", "sparse map", "old sparse map"],
)
def test_metadata_of_any_size_takes_no_memory(archive: bytes, tmp_path: Path) -> None:
    with memory_below(20 * MIB):
        assert refused(tmp_path / "here", archive) == "input_too_large"
    assert len(archive) < 4 * MIB


def test_records_of_a_pax_header_that_overlap_take_bounded_memory(tmp_path: Path) -> None:
    """Python before 3.11.10 takes each of them for a keyword with all the others in it."""
    records = b"2 " * 7000 + b"="
    records += bytes(-len(records) % tarfile.BLOCKSIZE)
    header = tar_info("about", type=tarfile.XHDTYPE, size=len(records)).tobuf()
    (tmp_path / "archive").write_bytes(header + records + tar_of(("a", b"1")))
    target = tmp_path / "target"
    with memory_below(80 * MIB), suppress(JobFailed):
        unpack(tmp_path / "archive", target, max_bytes=MIB, max_files=10)
    assert {path.name for path in target.rglob("*")} <= {"a"}


def test_what_global_headers_say_is_not_kept(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "archive", "wb", 1) as archive:
        for number in range(800):
            said = {f"comment.{number}": "x" * 14_000}
            archive.write(tarfile.TarInfo.create_pax_global_header(said))
            archive.write(tar_info(str(number)).tobuf())
        archive.write(bytes(1024))
    with memory_below(8 * MIB):
        taken = unpack(tmp_path / "archive", tmp_path / "target", max_bytes=MIB, max_files=1000)
    assert taken.files == 800


def test_an_xz_that_asks_for_much_memory_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = lzma.compress(tar_of(("a", b"1")), preset=6)  # which takes 9 MiB to unpack
    monkeypatch.setattr(packages, "MAX_XZ_BYTES", 8 * MIB)
    assert refused(tmp_path / "here", archive) == "input_broken"


def test_a_disk_that_is_full_is_no_fault_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have room, so the same start is worth another try."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unpacking._Tree, "_write", full)
    with pytest.raises(JobFailed, match=r"'archive' .* full") as failed:
        unpack_bytes(tmp_path, zip_of(("a", b"1")))
    assert (failed.value.code, failed.value.retryable) == ("input_not_stored", True)
    assert not (tmp_path / "target").exists()


# ---- what is broken


PLAIN = zip_of(("a", b"x" * 100), method=zipfile.ZIP_STORED)
DIRECTORY = PLAIN.index(b"PK\x01\x02")
BROKEN = {
    "nothing": b"",
    "text": b"hello " * 1000,
    "text in a gzip": gzip.compress(b"hello " * 1000),
    "encrypted": changed(changed(PLAIN, 6, b"\x01"), DIRECTORY + 8, b"\x01"),
    "by bzip2 in a zip": zip_of(("a", b"x" * 100), method=zipfile.ZIP_BZIP2),
    "by LZMA in a zip": zip_of(("a", b"x" * 100), method=zipfile.ZIP_LZMA),
    "two names in a zip": changed(PLAIN, DIRECTORY + 46, b"b"),
    "wrong CRC in a zip": PLAIN.replace(b"xx", b"xy", 1),
    "wrong CRC in a gzip": changed(gzip.compress(tar_of(("a", b"1"))), -8, bytes(4)),
    "wrong header": changed(tar_of(("a", b""), ("b", b""), ("c", b"")), 512, b"?"),
    "no end": tar_of(("a", b""), ("b", b""))[:1024],
    "more after the end": tar_of(("a", b"")) + tar_of(("b", b"")),
    "zeros without end": gzip.compress(bytes(2 * MIB)),
    "size below 0": tar_of(tar_info("a", size=-512)),
    "size below 0 in a PAX header": tar_of(tar_info("a", pax_headers={"size": "-512"})),
    "size for all in a PAX header": tarfile.TarInfo.create_pax_global_header({"size": "1500"})
    + tar_of(("a", b"1"), ("b", b"2"), ("c", b"3")),
    "wrong header at the end": changed(tar_of(("a", b""), ("b", b"")), 512, b"?"),
}


@pytest.mark.parametrize("archive", BROKEN.values(), ids=BROKEN)
def test_what_is_broken(archive: bytes, tmp_path: Path) -> None:
    assert refused(tmp_path / "here", archive) == "input_broken"


def test_what_is_cut_off_anywhere(packed: Packed, tmp_path: Path) -> None:
    whole = packed(*FILES.items()).rstrip(b"\0")
    for number, length in enumerate(range(0, len(whole) - 20, len(whole) // 40)):
        assert refused(tmp_path / str(number) / "here", whole[:length]) == "input_broken"


def test_no_damage_does_anything_but_be_refused_or_change_a_content(
    packed: Packed, tmp_path: Path
) -> None:
    whole, dice = packed(*FILES.items()), random.Random(1)  # noqa: S311 - no secret
    codes = set()
    for number in range(150):
        here = tmp_path / str(number)
        here.mkdir()
        try:
            unpack_bytes(here, changed(whole, dice.randrange(len(whole)), dice.randbytes(1)))
        except JobFailed as error:
            codes.add(error.code)
        assert {path.name for path in here.iterdir()} <= {"archive", "target"}
    assert codes <= {"input_unsafe", "input_too_large", "input_broken"}


# ---- when the job is told to stop


@pytest.mark.parametrize("looks", [1, 2, 5])
def test_it_stops_between_files_and_within_one(packed: Packed, looks: int, tmp_path: Path) -> None:
    answers = iter([False] * looks + [True])
    archive = packed(("small", b"1"), ("large", bytes(2 * MIB)))
    with pytest.raises(JobStopped):
        unpack_bytes(tmp_path, archive, should_stop=lambda: next(answers))
    assert not (tmp_path / "target").exists()


# ---- among the inputs of a job


def test_limits_are_for_all_archives_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: zip_of(("f", b"x" * 600)) for name in ("a.zip", "b.zip")}
    contexts = [JobContext(tmp_path / "1"), JobContext(tmp_path / "2")]
    for context in contexts:
        give(context, two)
    with pytest.raises(JobFailed, match=r"'b\.zip'.* more than the 599 bytes"):
        unpacking.unpack_inputs(contexts[0], two, 1199)
    monkeypatch.setattr(unpacking, "MAX_FILES", 1)
    with pytest.raises(JobFailed, match=r"'b\.zip'.* more than the 0 files"):
        unpacking.unpack_inputs(contexts[1], two, 1200)
