"""The files that an upload would send, and the names under which results are written."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from podjobs.disk_names import disk_paths
from podjobs.errors import InvalidPath
from podjobs.local_files import HashCache, LocalFile, find, folder_name

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(path)


def test_ignored_files_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "._a.png", ".DS_Store", "sub/b.png", "sub/b.tmp", "__MACOSX/x")
    (tmp_path / ".gitignore").write_text("*.tmp\n")

    found = find(tmp_path)

    assert [file.path for file in found.files] == ["a.png", "sub/b.png"]
    assert sorted(found.ignored) == [".DS_Store", "._a.png", "__MACOSX/", "sub/b.tmp"]


def test_a_single_file_and_a_glob_are_sources_too(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", "c.txt")
    assert [file.path for file in find(tmp_path / "c.txt").files] == ["c.txt"]
    assert [file.path for file in find(tmp_path / "*.png").files] == ["a.png", "b.png"]


@pytest.mark.parametrize("source", ["nothing", "empty"])
def test_nothing_to_send_is_an_error_in_words(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidPath, match="no files to send"):
        find(tmp_path / source)


@pytest.mark.skipif(os.name == "nt", reason="such names are one file there")
@pytest.mark.parametrize("twin", ["A.png", "caf\u0065\u0301.png"], ids=["case", "normalisation"])
def test_two_names_that_some_disk_takes_for_one_are_refused(tmp_path: Path, twin: str) -> None:
    write(tmp_path, twin, "a.png", "caf\u00e9.png")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("such names are one file on this disk")
    with pytest.raises(InvalidPath, match="differ only in case or normalisation"):
        find(tmp_path)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    write(tmp_path / "in", "a.txt")
    cache = HashCache(tmp_path / "hashes.sqlite")
    [first] = cache.hashed(find(tmp_path / "in").files)
    with sqlite3.connect(tmp_path / "hashes.sqlite") as known:
        known.execute("UPDATE hashes SET sha256 = 'remembered'")

    assert [file.sha256 for file in cache.hashed(find(tmp_path / "in").files)] == ["remembered"]

    (tmp_path / "in" / "a.txt").write_text("other bytes")
    [changed] = cache.hashed(find(tmp_path / "in").files)
    assert changed.sha256 not in ("remembered", first.sha256)


def test_a_folder_is_named_after_its_contents(tmp_path: Path) -> None:
    one = LocalFile("a", tmp_path / "a", 1, 1, "11")
    other = LocalFile("b", tmp_path / "b", 1, 1, "22")
    touched = one._replace(modified_ns=2)

    name = folder_name("My photos!", [one, other])

    assert name.startswith("My-photos-")
    assert name == folder_name("My photos!", [other, touched])
    assert name != folder_name("My photos!", [one])


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("samples/0010.png", "samples/0010.png"),
        ("100%.txt", "100%.txt"),
        ("a:b.png", "a%3Ab.png"),
        ("CON", "%43ON"),
        ("con.txt", "%63on.txt"),
        ("ends with dot.", "ends with dot%2E"),
        ("back\\slash", "back%5Cslash"),
        ("50%:1", "50%25%3A1"),
        ("../../etc/passwd", ".%2E/.%2E/etc/passwd"),
        ("/etc/passwd", "%/etc/passwd"),
    ],
)
def test_a_result_s_name_is_written_so_that_every_disk_holds_it(path: str, written: str) -> None:
    assert disk_paths([path]) == {path: written}


def test_names_that_differ_only_in_case_become_two_files() -> None:
    written = disk_paths(["Loss.png", "loss.png", "caf\u00e9", "cafe\u0301"])
    assert len({place.casefold() for place in written.values()}) == 4


def test_a_name_that_is_too_long_for_a_disk_keeps_its_ending() -> None:
    [written] = disk_paths(["é" * 200 + ".png"]).values()
    assert len(written.encode()) <= 255
    assert written.endswith(".png")
