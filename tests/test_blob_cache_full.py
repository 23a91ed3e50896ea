"""The cache on a disk that is small, or full: it gives way."""

from __future__ import annotations

import asyncio
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from inputs.blob_cache import BlobCache
from inputs.errors import DiskFull
from tests.blobs import (
    HeldUp,
    Origin,
    a_minute_passes,
    contents,
    keep,
    unfinished,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from inputs.files import Blob


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scratch" / "blobs"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Where processes have their inputs."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("free", "kept"), [(30, [b"b" * 10]), (50, [b"a" * 10, b"b" * 10])])
async def test_a_small_disk_is_filled_by_half(
    inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, kept: list[bytes]
) -> None:
    """The other half is for the copies."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    cache = BlobCache(folder, max_bytes=1000)
    for letter in "ab":
        await keep(cache, letter, letter.encode() * 10, inputs / letter)
        a_minute_passes(folder)
    assert contents(folder) == kept


async def test_what_is_kept_already_counts_as_room(
    inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a worker that starts on a disk full of its own blobs would throw most of them away."""
    await keep(BlobCache(folder, max_bytes=1000), "a", b"a" * 10, inputs / "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    await keep(BlobCache(folder, max_bytes=1000), "a", b"not asked for", inputs / "again")
    assert contents(folder) == [b"a" * 10]


class SmallDisk(Origin):
    """It fills up for as long as a blob lies in the folder that is not its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def fetch(self, path: Path, known: Blob | None) -> Blob | None:
        self.fails_with = DiskFull("no space") if contents(self._folder) else None
        return await super().fetch(path, known)


async def test_on_a_full_disk_what_nobody_waits_for_makes_room(inputs: Path, folder: Path) -> None:
    cache = BlobCache(folder, max_bytes=1000)
    for letter in "ab":
        await keep(cache, letter, letter.encode() * 10, inputs / letter)
    large = SmallDisk(folder)
    assert await cache.place("x", inputs / "x", large.fetch, immutable=True) == large.blob
    assert large.asked == [None, None]
    assert contents(folder) == [large.content]
    assert unfinished(inputs, folder) == []


async def test_on_a_full_disk_what_somebody_waits_for_stays(
    inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, copy = BlobCache(folder, 1000), HeldUp(monkeypatch)
    slow = asyncio.create_task(keep(cache, "a", b"a" * 10, inputs / "a"))
    await until(copy.started.is_set)
    large = SmallDisk(folder)
    with pytest.raises(DiskFull):
        await cache.place("x", inputs / "x", large.fetch, immutable=True)
    assert large.asked == [None, None]
    copy.go_on.set()
    await slow
    assert (inputs / "a").read_bytes() == b"a" * 10
