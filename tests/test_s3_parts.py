"""Streams and parts through a store that breaks: nothing is sent twice, lost or left over.

On Ceph RGW, through a proxy.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

import httpx
import pytest

from storage import FileFacts, ObjectNotFound, StorageMisconfigured, StorageUnavailable
from stores.s3.files import PART
from stores.s3.store import S3Store
from tests import servers
from tests.faulty_s3 import Answer, Fault, FaultyS3, always, every, once, unsigned
from tests.test_s3_transfer import BREAKS, a_part, completion, unfinished
from tests.test_storage_streams import BrokenSource, Chunks, cut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.faulty_s3 import Asked
    from tests.servers import S3Server

#: Three parts, the last of them short.
SIZE = 2 * PART + 1000
DATA = os.urandom(SIZE)
FACTS = FileFacts(SIZE, hashlib.sha256(DATA).hexdigest())


@pytest.fixture
async def store(ceph: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    place = {**ceph.place(), "endpoint_url": proxy.url}
    store = S3Store(**place, transfer_timeout=5.0)  # type: ignore[arg-type]
    proxy.rule = unsigned
    yield store
    proxy.rule = lambda _: None
    await store.close()


def chunks(error: BaseException | None = None) -> Chunks:
    return Chunks(*cut(DATA, 1 << 20), error=error)


# ---- streams


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_stream_comes_through_though_every_third_request_fails(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    gone: list[int] = []
    proxy.rule = every(3, fault)
    assert await store.upload_stream(chunks(), "a", size=SIZE, on_bytes=gone.append) == FACTS
    assert sum(gone) == SIZE
    assert (await store.stat("a")).size == SIZE


async def test_only_the_part_of_a_stream_that_broke_is_sent_again(
    store: S3Store, proxy: FaultyS3
) -> None:
    proxy.rule = once(Fault.LOST_REQUEST, a_part)
    await store.upload_stream(chunks(), "a", size=SIZE)
    assert sum(map(a_part, proxy.asked)) == 3 + 1


async def test_a_short_stream_is_one_request(store: S3Store, proxy: FaultyS3) -> None:
    await store.upload_stream(Chunks(bytes(PART)), "a", size=10 * PART)
    assert [asked.method for asked in proxy.asked] == ["PUT"]


async def test_all_parts_of_a_stream_but_the_last_are_equal(
    store: S3Store, proxy: FaultyS3
) -> None:
    await store.upload_stream(Chunks(*cut(DATA, 777_777)), "a", size=SIZE)
    sent = [int(asked.headers["content-length"]) for asked in proxy.asked if a_part(asked)]
    assert sorted(sent) == [1000, PART, PART]


async def test_a_stream_whose_completion_got_lost_is_recognised(
    store: S3Store, proxy: FaultyS3
) -> None:
    proxy.rule = once(Fault.LOST_ANSWER, completion)
    assert await store.upload_stream(chunks(), "a", size=SIZE) == FACTS
    assert sum(map(completion, proxy.asked)) == 1


async def test_a_store_that_does_not_come_back_ends_the_stream(
    ceph: S3Server, store: S3Store, proxy: FaultyS3
) -> None:
    store._files.patience = 0.2
    before = unfinished(ceph)
    endless = chunks()
    endless.go.clear()
    proxy.rule = always(Fault.SLOW_DOWN, a_part)
    with pytest.raises(StorageUnavailable):
        await store.upload_stream(endless, "a", size=10 * SIZE)
    assert endless.closed
    assert unfinished(ceph) == before


async def test_a_stream_that_breaks_leaves_no_parts(ceph: S3Server, store: S3Store) -> None:
    before = unfinished(ceph)
    with pytest.raises(BrokenSource):
        await store.upload_stream(chunks(BrokenSource()), "a", size=10 * SIZE)
    assert unfinished(ceph) == before


async def test_a_stream_cancelled_while_it_waits_leaves_no_parts(
    ceph: S3Server, store: S3Store
) -> None:
    before = unfinished(ceph)
    waiting = chunks()
    waiting.go.clear()
    task = asyncio.create_task(store.upload_stream(waiting, "a", size=10 * SIZE))
    await waiting.at_the_end.wait()
    assert unfinished(ceph) == before + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert unfinished(ceph) == before
    assert waiting.closed


def beginning(asked: Asked) -> bool:
    return asked.method == "POST" and asked.path.endswith("?uploads")


@pytest.mark.parametrize("when", [beginning, a_part, completion])
async def test_a_stream_cancelled_while_it_is_sent_leaves_no_parts(
    ceph: S3Server, store: S3Store, proxy: FaultyS3, when: Callable[[Asked], bool]
) -> None:
    before = unfinished(ceph)
    proxy.rule = always(Fault.SILENT, when)
    task = asyncio.create_task(store.upload_stream(chunks(), "a", size=SIZE))
    await asyncio.to_thread(proxy.silenced.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.release()
    assert unfinished(ceph) == before
    with pytest.raises(ObjectNotFound):
        await store.stat("a")


async def test_an_upload_that_begins_while_it_is_cancelled_is_thrown_away(
    ceph: S3Server, store: S3Store, proxy: FaultyS3
) -> None:
    """The answer is on its way; who is cancelled waits for it, and so knows what to abort."""
    before = unfinished(ceph)
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def cancel(asked: Asked) -> None:
        if beginning(asked):
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(begun.set)

    proxy.before = cancel
    task = asyncio.create_task(store.upload_stream(chunks(), "a", size=SIZE))
    await begun.wait()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert unfinished(ceph) == before


# ---- ranges and looks


@pytest.mark.parametrize("fault", [*BREAKS, Fault.TRUNCATED])
async def test_a_range_that_breaks_is_fetched_again(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    await store.put("a", DATA)
    proxy.rule = once(fault, lambda asked: "range" in asked.headers)
    assert await store.get_range("a", offset=5, length=PART) == DATA[5 : 5 + PART]


async def test_a_bucket_that_is_not_there_is_not_a_missing_object(ceph: S3Server) -> None:
    """HEAD is answered 404 for both."""
    store = servers.open_place({**ceph.place(), "bucket": "no-such-bucket"})
    with pytest.raises(StorageMisconfigured, match="does not exist"):
        await store.stat("a")
    await store.close()


async def test_a_look_that_is_forbidden_says_nothing_about_the_object(ceph: S3Server) -> None:
    assert ceph.other is not None
    store = servers.open_place({**ceph.place(), **ceph.other._asdict()})
    with pytest.raises(StorageMisconfigured, match="will not say"):
        await store.stat("a")
    await store.close()


# ---- parts that callers send


def listing(asked: Asked) -> bool:
    return asked.method == "GET" and "uploadId=" in asked.path


async def sent(store: S3Store) -> str:
    """An upload whose parts are all there."""
    links = await store.presign_parts("a", size=SIZE, part_size=PART, expires_in=60)
    async with httpx.AsyncClient() as client:
        for url, part in zip(links.urls, cut(DATA, PART), strict=True):
            (await client.put(url, content=part)).raise_for_status()
    return links.upload_id


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("when", [listing, completion])
async def test_joining_survives_any_one_failure(
    store: S3Store, proxy: FaultyS3, fault: Fault, when: Callable[[Asked], bool]
) -> None:
    upload_id = await sent(store)
    proxy.rule = once(fault, when)
    await store.join_parts("a", upload_id, size=SIZE)
    assert (await store.get("a")).data == DATA


async def test_two_may_join_at_once(store: S3Store) -> None:
    upload_id = await sent(store)
    await asyncio.gather(*(store.join_parts("a", upload_id, size=SIZE) for _ in range(4)))
    assert (await store.get("a")).data == DATA


async def test_a_part_that_is_sent_once_more_while_all_are_joined_is_looked_up_again(
    store: S3Store, proxy: FaultyS3
) -> None:
    upload_id = await sent(store)
    proxy.asked.clear()
    proxy.rule = once(Answer.error(400, "InvalidPart"), completion)
    await store.join_parts("a", upload_id, size=SIZE)
    assert sum(map(listing, proxy.asked)) == 2


async def test_more_than_a_thousand_parts_are_listed_page_by_page(
    store: S3Store, proxy: FaultyS3
) -> None:
    """No test sends a thousand parts: the proxy says so, and the sum is what is looked at."""

    def page(asked: Asked) -> Answer | None:
        if not listing(asked):
            return None
        first = 1 if "part-number-marker=0" in asked.path else 1001
        last, more = (1000, "true") if first == 1 else (1200, "false")
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>e</ETag><Size>5</Size></Part>"
            for number in range(first, last + 1)
        )
        body = f"<ListPartsResult><IsTruncated>{more}</IsTruncated>{parts}</ListPartsResult>"
        return Answer(200, body.encode())

    proxy.rule = lambda asked: page(asked) or (Answer(200, b"<C/>") if completion(asked) else None)
    await store.join_parts("a", "mark.upload", size=1200 * 5)
    assert [asked.method for asked in proxy.asked] == ["GET", "GET", "POST"]
