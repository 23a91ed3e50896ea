"""Files that more than one process needs: fetched once, copied for each, never believed to stay."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from inputs import blob_cache
from inputs.blob_cache import BlobCache
from inputs.errors import InputMissing, InputNotStored
from inputs.fetch import Limits, fetch
from inputs.files import CHUNK, Blob
from inputs.public_web import Web, parse_allowed_hosts
from tests.blobs import (
    HeldUp,
    Origin,
    a_minute_passes,
    contents,
    keep,
    names,
    unfinished,
    until,
)
from tests.web_server import Asked, Reply, WebServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: An identity may be as good as a key.
LINK = "https://bucket.test/file?X-Signature=secret"


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scratch" / "blobs"


@pytest.fixture
def cache(folder: Path) -> BlobCache:
    return BlobCache(folder, max_bytes=1000)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Where processes have their inputs."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder


# ---- what is here already


async def test_what_never_changes_is_fetched_once(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    for name in ("a", "b"):
        assert await cache.place("x", inputs / name, origin.fetch, immutable=True) == origin.blob
        assert (inputs / name).read_bytes() == b"content"
    assert origin.asked == [None]


async def test_what_may_change_is_asked_about_with_what_is_here(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    for name in ("a", "b"):
        assert await cache.place("x", inputs / name, origin.fetch, immutable=False) == origin.blob
    assert origin.asked == [None, origin.blob]
    assert (inputs / "b").read_bytes() == b"content"


async def test_what_has_changed_takes_the_place_of_the_old(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path
) -> None:
    await cache.place("x", inputs / "a", origin.fetch, immutable=False)
    origin.content = b"newer"
    assert await cache.place("x", inputs / "b", origin.fetch, immutable=False) == origin.blob
    assert (inputs / "a").read_bytes() == b"content"
    assert (inputs / "b").read_bytes() == b"newer"
    assert contents(folder) == [b"newer"]


async def test_a_job_that_writes_to_its_input_changes_nobody_elses(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    await cache.place("x", inputs / "a", origin.fetch, immutable=True)
    with (inputs / "a").open("r+b") as file:
        file.write(b"CONTENT")
    await cache.place("x", inputs / "b", origin.fetch, immutable=True)
    assert (inputs / "b").read_bytes() == b"content"


async def test_another_worker_finds_it_by_its_sha256(
    origin: Origin, inputs: Path, folder: Path
) -> None:
    for name in ("a", "b"):
        worker = BlobCache(folder, max_bytes=1000)
        sha256 = origin.blob.sha256
        await worker.place("x", inputs / name, origin.fetch, immutable=True, sha256=sha256)
    assert origin.asked == [None]


async def test_many_first_callers_prepare_the_folder_once(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    names = [str(number) for number in range(20)]
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(cache.place(name, inputs / name, origin.fetch, immutable=True))
    assert {(inputs / name).read_bytes() for name in names} == {b"content"}


@pytest.mark.parametrize("before_the_first", [True, False])
async def test_a_link_in_place_of_the_folder_diverts_nothing(
    cache: BlobCache,
    origin: Origin,
    inputs: Path,
    folder: Path,
    tmp_path: Path,
    before_the_first: bool,
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine.blob").write_text("a file of others")
    if not before_the_first:
        await cache.place("x", inputs / "a", origin.fetch, immutable=False)
        folder.rename(tmp_path / "moved")
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(tmp_path / "outside")

    with nullcontext() if not before_the_first else pytest.raises(InputNotStored):
        await cache.place("y", inputs / "b", origin.fetch, immutable=False)

    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["mine.blob"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("immutable", [True, False])
async def test_a_blob_that_a_job_rewrote_whole_is_fetched_again(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path, declared: bool, immutable: bool
) -> None:
    """Both files agree with each other, and with nothing that this worker knows."""
    sha256 = origin.blob.sha256 if declared else None
    await cache.place("x", inputs / "a", origin.fetch, immutable=immutable, sha256=sha256)
    forged = origin.blob.model_copy(update={"sha256": hashlib.sha256(b"forgery").hexdigest()})
    (side,) = folder.glob("*.json")
    side.write_text(forged.model_dump_json())
    (folder / f"{side.stem}-{forged.sha256}.blob").write_bytes(b"forgery")
    await cache.place("x", inputs / "b", origin.fetch, immutable=immutable, sha256=sha256)
    assert (inputs / "b").read_bytes() == b"content"


async def test_a_blob_of_another_worker_without_a_declared_sha256_is_fetched_again(
    origin: Origin, inputs: Path, folder: Path
) -> None:
    for name in ("a", "b"):
        worker = BlobCache(folder, max_bytes=1000)
        await worker.place("x", inputs / name, origin.fetch, immutable=True)
    assert origin.asked == [None, None]


async def test_an_identity_is_a_secret(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path
) -> None:
    await cache.place(LINK, inputs / "a", origin.fetch, immutable=True)
    written = " ".join([*names(folder), *(path.read_text() for path in folder.iterdir())])
    assert "secret" not in written
    assert "bucket" not in written


# ---- what is not as it was


def cut_off(blob: Path) -> None:
    blob.write_bytes(b"cont")


def mislead(blob: Path) -> None:
    blob.with_name(blob.name[:64] + ".json").write_text('{"size": 7, "sha256": "../../etc"}')


def overwrite(blob: Path) -> None:
    blob.write_bytes(b"CONTENT")


def point_elsewhere(blob: Path) -> None:
    blob.rename(blob.with_name("elsewhere"))
    blob.symlink_to("elsewhere")


def replace_by_a_fifo(blob: Path) -> None:
    blob.unlink()
    os.mkfifo(blob)


def replace_its_word_by_a_fifo(blob: Path) -> None:
    replace_by_a_fifo(blob.with_name(blob.name[:64] + ".json"))


HARMS = [
    cut_off,
    mislead,
    os.unlink,
    overwrite,
    point_elsewhere,
    replace_by_a_fifo,
    replace_its_word_by_a_fifo,
]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_damaged_blob_is_fetched_again(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path, harm: Callable[[Path], None]
) -> None:
    await cache.place("x", inputs / "a", origin.fetch, immutable=True)
    (blob,) = folder.glob("*.blob")
    harm(blob)
    await cache.place("x", inputs / "b", origin.fetch, immutable=True)
    assert origin.asked == [None, None]
    assert (inputs / "b").read_bytes() == b"content"
    assert contents(folder) == [b"content"]


@pytest.mark.parametrize("harm", [overwrite, replace_by_a_fifo])
async def test_a_blob_that_is_changed_before_it_is_copied_is_fetched_again(
    cache: BlobCache,
    origin: Origin,
    inputs: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
) -> None:
    copy = HeldUp(monkeypatch)
    placing = asyncio.create_task(cache.place("x", inputs / "a", origin.fetch, immutable=True))
    await until(copy.started.is_set)
    (blob,) = folder.glob("*.blob")
    harm(blob)
    copy.go_on.set()
    await placing
    assert origin.asked == [None, None]
    assert (inputs / "a").read_bytes() == b"content"


async def test_a_large_blob_that_was_overwritten_is_fetched_again(
    inputs: Path, folder: Path
) -> None:
    cache, large = BlobCache(folder, 10 * CHUNK), Origin(bytes(2 * CHUNK + 1))
    await cache.place("x", inputs / "a", large.fetch, immutable=True)
    (blob,) = folder.glob("*.blob")
    with blob.open("r+b") as file:
        file.seek(CHUNK)
        file.write(b"other")
    await cache.place("x", inputs / "b", large.fetch, immutable=True)
    assert large.asked == [None, None]
    assert (inputs / "b").read_bytes() == large.content


async def test_a_blob_that_vanishes_before_it_is_copied_is_fetched_again(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path
) -> None:
    await cache.place("x", inputs / "a", origin.fetch, immutable=False)

    async def fetch_as_another_worker_removes(path: Path, known: Blob | None) -> Blob | None:
        answer = await origin.fetch(path, known)
        if answer is None:
            for blob in folder.glob("*.blob"):
                blob.unlink()
        return answer

    await cache.place("x", inputs / "b", fetch_as_another_worker_removes, immutable=False)
    assert origin.asked == [None, origin.blob, None]
    assert (inputs / "b").read_bytes() == b"content"


async def test_what_killed_writers_left_is_swept_up_when_it_is_old(
    origin: Origin, inputs: Path, folder: Path
) -> None:
    folder.mkdir(parents=True)
    (folder / ".in-use.part").touch()
    (folder / ".abandoned.part").touch()
    os.utime(folder / ".abandoned.part", (time.time() - 7200, time.time() - 7200))
    await BlobCache(folder, 1000).place("x", inputs / "a", origin.fetch, immutable=True)
    assert unfinished(folder) == [folder / ".in-use.part"]


# ---- callers at the same time


async def test_callers_at_the_same_time_share_one_fetch(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    places = (cache.place("x", inputs / str(n), origin.fetch, immutable=False) for n in range(8))
    assert await asyncio.gather(*places) == [origin.blob] * 8
    assert origin.asked == [None]
    assert [(inputs / str(n)).read_bytes() for n in range(8)] == [b"content"] * 8


async def test_identities_do_not_wait_for_each_other(cache: BlobCache, inputs: Path) -> None:
    slow, quick = Origin(), Origin()
    slow.open.clear()
    waiting = asyncio.create_task(cache.place("x", inputs / "a", slow.fetch, immutable=True))
    await until(lambda: slow.asked)
    await cache.place("y", inputs / "b", quick.fetch, immutable=True)
    assert (inputs / "b").read_bytes() == b"content"
    assert not waiting.done()
    slow.open.set()
    assert await waiting == slow.blob


async def test_a_caller_that_is_cancelled_does_not_cancel_the_others(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    origin.open.clear()
    first, second = (
        asyncio.create_task(cache.place("x", inputs / name, origin.fetch, immutable=True))
        for name in ("a", "b")
    )
    await until(lambda: origin.asked)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    origin.open.set()
    assert await second == origin.blob
    assert names(inputs) == ["b"]


async def test_a_fetch_that_nobody_waits_for_is_cancelled(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path
) -> None:
    origin.open.clear()
    callers = [
        asyncio.create_task(cache.place("x", inputs / name, origin.fetch, immutable=True))
        for name in ("a", "b")
    ]
    await until(lambda: origin.asked)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert origin.cancelled.is_set()
    assert names(inputs) == names(folder) == []
    origin.open.set()
    assert await cache.place("x", inputs / "c", origin.fetch, immutable=True) == origin.blob


async def test_a_fetch_that_fails_is_forgotten_and_each_who_waited_tries_his_own(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path
) -> None:
    origin.fails_with = InputMissing("not there")
    outcomes = await asyncio.gather(
        *(cache.place("x", inputs / name, origin.fetch, immutable=True) for name in ("a", "b")),
        return_exceptions=True,
    )
    assert outcomes == [origin.fails_with] * 2
    assert names(inputs) == names(folder) == []
    origin.fails_with = None
    assert await cache.place("x", inputs / "a", origin.fetch, immutable=True) == origin.blob
    assert origin.asked == [None, None, None]


async def test_anothers_dead_link_does_not_fail_who_has_a_live_one(
    cache: BlobCache, inputs: Path
) -> None:
    dead, live = Origin(b"same bytes"), Origin(b"same bytes")
    dead.fails_with = InputMissing("the link has expired")
    dead.open.clear()
    first = asyncio.create_task(cache.place("x", inputs / "a", dead.fetch, immutable=True))
    await until(lambda: dead.asked)
    second = asyncio.create_task(cache.place("x", inputs / "b", live.fetch, immutable=True))
    await until(lambda: cache._shares and next(iter(cache._shares.values())).waiting == 2)
    dead.open.set()
    with pytest.raises(InputMissing):
        await first
    assert await second == live.blob


# ---- a limited size


async def test_what_was_not_used_for_longest_goes_first(inputs: Path, folder: Path) -> None:
    cache = BlobCache(folder, max_bytes=35)
    for letter in "abc":
        await keep(cache, letter, letter.encode() * 10, inputs / letter)
        a_minute_passes(folder)
    await keep(cache, "a", b"not asked for", inputs / "again")
    a_minute_passes(folder)
    await keep(cache, "d", b"d" * 10, inputs / "d")
    assert contents(folder) == [letter * 10 for letter in (b"a", b"c", b"d")]
    assert len(names(folder)) == 6  # nothing is left of b


async def test_what_is_being_copied_is_not_removed(
    inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, copy = BlobCache(folder, max_bytes=10), HeldUp(monkeypatch)
    slow = asyncio.create_task(keep(cache, "a", b"a" * 10, inputs / "a"))
    await until(copy.started.is_set)
    await keep(cache, "b", b"b" * 10, inputs / "b")
    assert contents(folder) == [b"a" * 10]
    copy.go_on.set()
    await slow
    assert (inputs / "a").read_bytes() == b"a" * 10


async def test_what_is_being_asked_about_is_not_removed(inputs: Path, folder: Path) -> None:
    cache, origin = BlobCache(folder, max_bytes=10), Origin(b"a" * 10)
    await cache.place("a", inputs / "a", origin.fetch, immutable=False)
    origin.open.clear()
    asking = asyncio.create_task(cache.place("a", inputs / "c", origin.fetch, immutable=False))
    await until(lambda: origin.asked[1:])
    await keep(cache, "b", b"b" * 10, inputs / "b")
    origin.open.set()
    await asking
    assert origin.asked == [None, origin.blob]
    assert (inputs / "c").read_bytes() == b"a" * 10


async def test_a_large_blob_that_is_changed_before_it_is_moved_is_fetched_again(
    inputs: Path, folder: Path
) -> None:
    """Another job of the same user reaches the folder that it is fetched into."""
    cache, origin = BlobCache(folder, max_bytes=1), Origin()

    async def fetch_while_a_job_writes(path: Path, known: Blob | None) -> Blob | None:
        blob = await origin.fetch(path, known)
        if len(origin.asked) == 1:
            path.write_bytes(b"forgery")
        return blob

    await cache.place("x", inputs / "a", fetch_while_a_job_writes, immutable=True)
    assert (inputs / "a").read_bytes() == b"content"
    assert len(origin.asked) == 2


@pytest.mark.parametrize("max_bytes", [0, 6])
async def test_what_is_larger_than_the_cache_is_handed_over_and_not_kept(
    origin: Origin, inputs: Path, folder: Path, max_bytes: int
) -> None:
    cache = BlobCache(folder, max_bytes)
    places = (cache.place("x", inputs / name, origin.fetch, immutable=True) for name in ("a", "b"))
    assert await asyncio.gather(*places) == [origin.blob] * 2
    assert (inputs / "a").read_bytes() == (inputs / "b").read_bytes() == b"content"
    assert origin.asked == [None]
    assert names(folder) == []
    await cache.place("x", inputs / "c", origin.fetch, immutable=True)
    assert origin.asked == [None, None]
    assert names(inputs) == ["a", "b", "c"]
    assert names(folder) == []


# ---- the disk


async def test_a_copy_whose_caller_is_cancelled_leaves_nothing(
    inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, copy = BlobCache(folder, 10 * CHUNK), HeldUp(monkeypatch)
    large = Origin(bytes(3 * CHUNK))
    placing = asyncio.create_task(cache.place("x", inputs / "a", large.fetch, immutable=True))
    await until(copy.started.is_set)
    placing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await placing
    copy.go_on.set()  # a thread cannot be cancelled: it comes too late
    await until(copy.ended.is_set)
    assert names(inputs) == []
    assert unfinished(folder) == []
    assert await cache.place("x", inputs / "a", large.fetch, immutable=True) == large.blob
    assert large.asked == [None]


async def test_a_large_file_is_copied_piece_by_piece(inputs: Path, folder: Path) -> None:
    large = Origin(os.urandom(2 * CHUNK + 1))
    for name in ("a", "b"):
        worker = BlobCache(folder, 10 * CHUNK)
        await worker.place("x", inputs / name, large.fetch, immutable=True)
        assert (inputs / name).read_bytes() == large.content


async def test_a_full_disk_is_said_in_words(
    cache: BlobCache, origin: Origin, inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blob_cache, "_copy_some", fail)
    with pytest.raises(InputNotStored, match="No space left"):
        await cache.place("x", inputs / "a", origin.fetch, immutable=True)
    assert names(inputs) == []
    assert unfinished(folder) == []


async def test_a_target_without_a_folder_is_no_reason_to_fetch_again(
    cache: BlobCache, origin: Origin, inputs: Path
) -> None:
    with pytest.raises(InputNotStored, match="No such file"):
        await cache.place("x", inputs / "nowhere" / "a", origin.fetch, immutable=True)
    assert origin.asked == [None]


async def test_the_web_is_asked_once_for_all_of_a_workers_processes(
    cache: BlobCache, inputs: Path
) -> None:
    def reply(asked: Asked) -> Reply:
        tag = '"v1"'
        known = asked.headers.get("if-none-match") == tag
        return Reply(304 if known else 200, b"" if known else b"content", {"ETag": tag})

    async def fetch_it(path: Path, known: Blob | None) -> Blob | None:
        etag = known.etag if known else None
        web, limits = Web(parse_allowed_hosts("127.0.0.1")), Limits(1000, total_seconds=60)
        return await fetch(server.url, path, web=web, limits=limits, etag=etag)

    with WebServer(reply) as server:
        for name in ("a", "b"):
            await cache.place(server.url, inputs / name, fetch_it, immutable=False)
            assert (inputs / name).read_bytes() == b"content"
    assert len(server.asked) == 2
    assert server.sent_bytes == len(b"content")
