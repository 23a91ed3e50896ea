"""What is particular to a store in a folder: its files, its clock, its broken disks."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from storage import ChecksumMismatch, FileFacts, InvalidKey, ObjectNotFound, StorageUnavailable
from stores.local import files as local_files
from stores.local.store import LocalStore
from tests.servers import upload_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "store")
    yield store
    await store.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def test_an_object_is_a_file_that_people_can_open(local: LocalStore, root: Path) -> None:
    await local.put("processes/x/record.json", b"{}")
    assert (root / "processes/x/record.json").read_bytes() == b"{}"


async def test_nothing_is_made_before_the_first_call(local: LocalStore, root: Path) -> None:
    assert not root.exists()


async def test_the_stores_own_folder_is_no_key_and_never_listed(local: LocalStore) -> None:
    await local.put("a", b"")
    assert [row.key for row in (await local.list("")).objects] == ["a"]
    with pytest.raises(InvalidKey):
        await local.get(f"{local_files.HIDDEN}/clock")
    with pytest.raises(InvalidKey):
        await local.list(f"{local_files.HIDDEN}/")


async def test_a_part_of_a_key_must_fit_into_a_file_name(local: LocalStore) -> None:
    await local.put("a/" + "x" * 255, b"")
    with pytest.raises(InvalidKey, match="255"):
        await local.put("a/" + "x" * 256, b"")


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a"), ("a", "a/b/c")]
)
async def test_a_key_cannot_be_an_object_and_a_folder(
    local: LocalStore, first: str, second: str
) -> None:
    await local.put(first, b"1")
    with pytest.raises(InvalidKey, match="folder"):
        await local.put(second, b"2")
    with pytest.raises(ObjectNotFound):
        await local.get(second)
    await local.delete([second])
    assert (await local.get(first)).data == b"1"


async def test_delete_leaves_no_empty_folders(local: LocalStore, root: Path) -> None:
    await local.put("a/b/c", b"")
    await local.put("a/d", b"")
    await local.delete(["a/b/c"])
    assert not (root / "a/b").exists()
    await local.delete(["a/d"])
    assert [path.name for path in root.iterdir()] == [local_files.HIDDEN]


async def test_writing_and_pruning_one_folder_never_trip_each_other(local: LocalStore) -> None:
    async def write_and_remove(name: str) -> None:
        for _ in range(50):
            await local.create(f"deep/er/{name}", name.encode())
            assert (await local.get(f"deep/er/{name}")).data == name.encode()
            await local.delete([f"deep/er/{name}"])

    await asyncio.gather(*(write_and_remove(f"{n}") for n in range(8)))


async def test_links_are_neither_followed_nor_listed(
    local: LocalStore, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    await local.put("a", b"")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    with pytest.raises(ObjectNotFound):
        await local.get("file")
    for call in (local.get("folder/secret"), local.put("folder/x", b""), local.list("folder/")):
        with pytest.raises(InvalidKey, match="link"):
            await call
    assert [row.key for row in (await local.list("")).objects] == ["a"]
    await local.put("file", b"mine")  # takes the link's place
    assert (outside / "secret").read_text() == "s"


async def test_a_pipe_is_no_object_and_is_not_waited_for(local: LocalStore, root: Path) -> None:
    await local.put("a", b"")
    os.mkfifo(root / "pipe")
    for call in (local.get("pipe"), local.stat("pipe"), local.download("pipe", root / "copy")):
        with pytest.raises(ObjectNotFound):
            await call


@pytest.mark.parametrize("read_by_another", [False, True])
async def test_a_pipe_in_the_clocks_place_is_a_fault_and_is_not_waited_for(
    local: LocalStore, root: Path, read_by_another: bool
) -> None:
    await local.put("a", b"")
    clock = root / ".local-store" / "clock"
    clock.unlink()
    os.mkfifo(clock)
    reader = os.open(clock, os.O_RDONLY | os.O_NONBLOCK) if read_by_another else None
    with pytest.raises(StorageUnavailable):
        await local.get("a")
    if reader is not None:
        os.close(reader)


async def test_a_cancelled_upload_has_let_go_of_its_file(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner closes the file then, and the descriptor's number may come to mean another one."""
    reading, stopped = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def read_until_stopped(_file: int, _copy: BinaryIO, transfer: local_files.Transfer) -> None:
        loop.call_soon_threadsafe(reading.set)
        transfer.abandoned.wait()
        stopped.set()
        raise InterruptedError(errno.EINTR, "the transfer was abandoned")

    monkeypatch.setattr(local_files, "copy", read_until_stopped)
    source = tmp_path / "source"
    source.touch()
    task = asyncio.create_task(upload_file(local, source, "a"))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()


async def test_files_that_could_not_be_keys_are_left_out_of_lists(
    local: LocalStore, root: Path
) -> None:
    await local.put("a", b"")
    (root / "back\\slash").touch()
    (root / os.fsdecode(b"\xff")).touch()
    assert [row.key for row in (await local.list("")).objects] == ["a"]


async def test_a_root_that_went_away_is_a_fault_not_an_empty_store(
    local: LocalStore, root: Path, tmp_path: Path
) -> None:
    await local.put("a/b", b"")
    root.rename(tmp_path / "elsewhere")
    calls = [
        local.get("a/b"),
        local.put("a/c", b""),
        local.create("a/d", b""),
        local.list("a/"),
        local.delete(["a/b"]),
        local.download("a/b", tmp_path / "file"),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable, match="unmounted"):
            await call
    assert not root.exists()
    (tmp_path / "elsewhere").rename(root)
    assert (await local.get("a/b")).data == b""


FAULTS = {
    errno.ENOSPC: "full disk",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EACCES: "owner",
    errno.EIO: "input/output",
    errno.ESTALE: "mount",
    errno.ENODEV: "No such device",
}


@pytest.mark.parametrize(("number", "hint"), FAULTS.items())
async def test_a_broken_disk_is_a_sentence_that_says_what_to_change(
    local: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    await local.put("a", b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageUnavailable, match=hint) as caught:
            await local.put("a", b"new")
        health = await local.check()
    assert caught.value.retryable
    assert not health.ok
    assert hint in health.message
    assert (await local.get("a")).data == b"old"
    assert list((root / local_files.HIDDEN / "writing").iterdir()) == []


async def test_a_folder_that_nobody_may_write_to() -> None:
    store = LocalStore(Path("/sys/worker-data"))
    health = await store.check()
    await store.close()
    assert not health.ok
    assert "/sys/worker-data" in health.message


async def test_a_file_that_changes_while_it_is_read_is_not_stored(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "growing"
    source.write_bytes(b"x")

    def copy_and_grow(file: int, copy: BinaryIO, transfer: local_files.Transfer) -> FileFacts:
        facts = local_files_copy(file, copy, transfer)
        source.write_bytes(b"xy")
        return facts

    local_files_copy = local_files.copy
    monkeypatch.setattr(local_files, "copy", copy_and_grow)
    with pytest.raises(ChecksumMismatch, match="changed"):
        await upload_file(local, source, "a")
    with pytest.raises(ObjectNotFound):
        await local.get("a")


async def test_what_killed_writers_left_is_swept_up_when_it_is_old(
    local: LocalStore, root: Path
) -> None:
    await local.put("a", b"")
    writing = root / local_files.HIDDEN / "writing"
    (writing / "in-use").touch()
    (writing / "abandoned").touch()
    os.utime(writing / "abandoned", (time.time() - 7200, time.time() - 7200))
    next_worker = LocalStore(root)
    await next_worker.list("")
    await next_worker.close()
    assert [path.name for path in writing.iterdir()] == ["in-use"]


async def test_ages_do_not_depend_on_our_clock(
    local: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.put("a", b"")
    written = (root / "a").stat().st_mtime - 1000
    os.utime(root / "a", (written, written))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 1000 <= (await local.get("a")).age_seconds < 1100
    offset = (await local.check()).clock_offset_seconds
    assert offset is not None
    assert offset < -1_000_000_000


@pytest.mark.parametrize("moved", [3600.0, None], ids=["the clock was set back", "no time"])
async def test_a_file_whose_time_tells_nothing_has_no_age(
    local: LocalStore, root: Path, moved: float | None
) -> None:
    await local.put("a", b"")
    written = 0.0 if moved is None else (root / "a").stat().st_mtime + moved
    os.utime(root / "a", (written, written))
    found = await local.get("a")
    assert (found.age_seconds, found.read_at) == (None, None)


@pytest.mark.parametrize(
    ("prefix", "start_after", "folders"),
    [("b/", None, ["b"]), ("", "b/1", ["store", "b", "c"]), ("", "b/9", ["store", "b", "c"])],
)
async def test_a_page_reads_the_folders_it_shows_and_no_others(
    local: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    start_after: str | None,
    folders: list[str],
) -> None:
    for key in ("a/1", "b/1", "b/2", "c/1"):
        await local.put(key, b"")
    read: list[str] = []
    listdir = os.listdir

    def note_and_list(folder: Path) -> list[str]:
        read.append(folder.name)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", note_and_list)
    await local.list(prefix, start_after=start_after)
    assert read == folders


def test_a_kill_at_any_instant_leaves_the_old_object_or_the_new_one(root: Path) -> None:
    root.parent.mkdir(exist_ok=True)
    writers = subprocess.run(
        [sys.executable, "-m", "tests.crash_writer", root, "100"], capture_output=True, text=True
    )
    assert writers.returncode == 0, writers.stderr
