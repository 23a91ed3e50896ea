"""Files through a store that breaks, stalls or changes: whole or not at all, and nothing left over.

On Ceph RGW, through a proxy.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from typing import TYPE_CHECKING

import boto3
import pytest

from storage import ChecksumMismatch, FileFacts, ObjectNotFound, StorageUnavailable
from stores.s3.files import PART, PARTS_HELD
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, Fault, FaultyS3, always, every, once
from tests.servers import upload_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.faulty_s3 import Asked
    from tests.servers import S3Server

BREAKS = [Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.SLOW_DOWN, Fault.FAILED_AFTER]
#: Three parts, the last of them short.
SIZE = 2 * PART + 1000


@pytest.fixture
async def store(ceph: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    place = {**ceph.place(), "endpoint_url": proxy.url}
    store = S3Store(**place, transfer_timeout=5.0)  # type: ignore[arg-type]
    yield store
    proxy.rule = lambda _: None
    await store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def facts(file: Path) -> FileFacts:
    return FileFacts(SIZE, hashlib.sha256(file.read_bytes()).hexdigest())


def unfinished(server: S3Server) -> int:
    """Multipart uploads whose parts still lie in the bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.keys.access_key_id,
        aws_secret_access_key=server.keys.secret_access_key,
    )
    answer = client.list_multipart_uploads(Bucket=server.bucket)
    client.close()
    return len(answer.get("Uploads", []))


def a_part(asked: Asked) -> bool:
    """Of an upload or of a download, but the first of a download."""
    return "partNumber=" in asked.path or (
        "range" in asked.headers and not asked.headers["range"].startswith("bytes=0-")
    )


def completion(asked: Asked) -> bool:
    return asked.method == "POST" and "uploadId=" in asked.path


# ---- a stream that breaks


@pytest.mark.parametrize("fault", [*BREAKS, Fault.TRUNCATED])
async def test_a_file_comes_through_though_every_third_request_fails(
    store: S3Store, proxy: FaultyS3, file: Path, facts: FileFacts, tmp_path: Path, fault: Fault
) -> None:
    up: list[int] = []
    down: list[int] = []
    proxy.rule = every(3, fault)
    assert await upload_file(store, file, "a", on_bytes=up.append) == facts
    got = tmp_path / "got"
    assert await store.download("a", got, expected=facts, on_bytes=down.append) == facts
    assert got.read_bytes() == file.read_bytes()
    assert (sum(up), sum(down)) == (SIZE, SIZE)


async def test_only_the_part_that_broke_is_sent_again(
    store: S3Store, proxy: FaultyS3, file: Path
) -> None:
    proxy.rule = once(Fault.LOST_REQUEST, a_part)
    await upload_file(store, file, "a")
    assert sum(map(a_part, proxy.asked)) == 3 + 1


async def test_only_the_range_that_broke_is_fetched_again(
    store: S3Store, proxy: FaultyS3, file: Path, facts: FileFacts, tmp_path: Path
) -> None:
    await upload_file(store, file, "a")
    proxy.rule = once(Fault.TRUNCATED, a_part)
    proxy.asked.clear()
    assert await store.download("a", tmp_path / "got") == facts
    assert len(proxy.asked) == 3 + 1


@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.FAILED_AFTER])
async def test_a_completion_whose_answer_is_lost_is_recognised(
    store: S3Store, proxy: FaultyS3, file: Path, facts: FileFacts, fault: Fault
) -> None:
    proxy.rule = once(fault, completion)
    assert await upload_file(store, file, "a") == facts
    assert sum(map(completion, proxy.asked)) == 1
    assert (await store.list("")).objects[0].size == SIZE


# ---- a store that does not come back


async def test_an_upload_that_fails_leaves_nothing(
    ceph: S3Server, store: S3Store, proxy: FaultyS3, file: Path
) -> None:
    store._files.patience = 0.2
    before = unfinished(ceph)
    proxy.rule = always(Fault.SLOW_DOWN, a_part)
    with pytest.raises(StorageUnavailable):
        await upload_file(store, file, "a")
    assert unfinished(ceph) == before
    with pytest.raises(ObjectNotFound):
        await store.get("a")


async def test_a_download_that_fails_leaves_nothing(
    store: S3Store, proxy: FaultyS3, file: Path, tmp_path: Path
) -> None:
    store._files.patience = 0.2
    await upload_file(store, file, "a")
    proxy.rule = always(Fault.TRUNCATED, a_part)
    with pytest.raises(StorageUnavailable):
        await store.download("a", tmp_path / "new" / "got")
    assert list((tmp_path / "new").iterdir()) == []


async def test_failed_transfers_hold_no_memory_back(
    store: S3Store, proxy: FaultyS3, file: Path, facts: FileFacts, tmp_path: Path
) -> None:
    """Each failure would take a few buffers with it, until nobody could move a file."""
    store._files.patience = 0.0
    await upload_file(store, file, "a")
    proxy.rule = always(Fault.SLOW_DOWN, a_part)
    for _ in range(PARTS_HELD):
        with pytest.raises(StorageUnavailable):
            await upload_file(store, file, "b")
        with pytest.raises(StorageUnavailable):
            await store.download("a", tmp_path / "got")
    proxy.rule = lambda _: None
    async with asyncio.TaskGroup() as group:
        for number in range(2 * PARTS_HELD):
            group.create_task(store.download("a", tmp_path / f"got-{number}", expected=facts))


# ---- cancelled


@pytest.mark.parametrize("silent", [Fault.SILENT, Fault.SILENT_AFTER])
async def test_a_cancelled_upload_stops_and_leaves_nothing(
    ceph: S3Server, store: S3Store, proxy: FaultyS3, file: Path, silent: Fault
) -> None:
    before = unfinished(ceph)
    proxy.rule = always(silent, a_part)
    task = asyncio.create_task(upload_file(store, file, "a"))
    await asyncio.to_thread(proxy.silenced.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.release()
    assert unfinished(ceph) == before
    with pytest.raises(ObjectNotFound):
        await store.get("a")


async def test_a_cancelled_download_stops_and_leaves_nothing(
    store: S3Store, proxy: FaultyS3, file: Path, tmp_path: Path
) -> None:
    await upload_file(store, file, "a")
    proxy.rule = always(Fault.SILENT, a_part)
    task = asyncio.create_task(store.download("a", tmp_path / "new" / "got"))
    await asyncio.to_thread(proxy.silenced.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "new").iterdir()) == []


# ---- what changes meanwhile


@pytest.mark.parametrize("change", [b"longer", b""], ids=["grows", "is written to"])
@pytest.mark.parametrize("size", [1000, SIZE], ids=["small", "in parts"])
async def test_a_file_that_changes_while_it_is_read_does_not_go_up(
    ceph: S3Server,
    store: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    change: bytes,
) -> None:
    before, file, pread = unfinished(ceph), tmp_path / "changing", os.pread
    file.write_bytes(os.urandom(size))

    def read_and_change(*wanted: int) -> bytes:
        data = pread(*wanted)
        with file.open("ab") as writer:
            writer.write(change)
        os.utime(file, ns=(1, 1))
        return data

    monkeypatch.setattr(os, "pread", read_and_change)
    with pytest.raises(ChecksumMismatch):
        await upload_file(store, file, "a")
    assert unfinished(ceph) == before
    with pytest.raises(ObjectNotFound):
        await store.get("a")


async def test_a_file_is_read_once(
    store: S3Store, file: Path, facts: FileFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hashed as it passes."""
    came, pread = list[int](), os.pread

    def counted(*wanted: int) -> bytes:
        data = pread(*wanted)
        came.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert await upload_file(store, file, "a") == facts
    assert sum(came) == SIZE


async def test_an_object_that_is_replaced_while_it_comes_down_is_not_mixed(
    store: S3Store, proxy: FaultyS3, file: Path, tmp_path: Path
) -> None:
    await upload_file(store, file, "a")
    await store.download("a", tmp_path / "got")
    proxy.rule = always(Answer.error(412, "PreconditionFailed"), a_part)
    with pytest.raises(StorageUnavailable, match="replaced while it was downloaded"):
        await store.download("a", tmp_path / "mixed")
    ranges = [asked for asked in proxy.asked if a_part(asked) and asked.method == "GET"]
    assert all("if-match" in asked.headers for asked in ranges)
    assert not (tmp_path / "mixed").exists()


async def test_a_store_that_heeds_no_condition_mixes_no_objects(
    store: S3Store, proxy: FaultyS3, file: Path, tmp_path: Path
) -> None:
    await upload_file(store, file, "a")

    def another(asked: Asked) -> Answer | None:
        if not a_part(asked):
            return None
        first = int(asked.headers["range"].removeprefix("bytes=").partition("-")[0])
        told = f"bytes {first}-{first + 9}/{first + 10}"
        return Answer(206, bytes(10), (("ETag", '"another"'), ("Content-Range", told)))

    proxy.rule = another
    with pytest.raises(StorageUnavailable, match="replaced while it was downloaded"):
        await store.download("a", tmp_path / "new" / "got")
    assert list((tmp_path / "new").iterdir()) == []


# ---- a disk that takes no more


async def test_a_full_disk_is_not_the_stores_failure_and_nothing_is_tried_anew(
    store: S3Store, proxy: FaultyS3, file: Path, tmp_path: Path
) -> None:
    await upload_file(store, file, "a")
    proxy.asked.clear()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PART, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            await store.download("a", tmp_path / "new" / "got")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(proxy.asked) <= 3
    assert list((tmp_path / "new").iterdir()) == []
