"""A store that fails before or after it did what it was asked to: nothing is lost, nothing is done
twice, nobody is told what is not so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from storage import ObjectChanged, ObjectExists, ObjectNotFound, StorageUnavailable
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, Fault, FaultyS3, always, conditional, every, once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.faulty_s3 import Asked
    from tests.servers import S3Server

BREAKS = [Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.SLOW_DOWN, Fault.FAILED_AFTER]
#: Those after which a write may have been done.
DONE_ANYWAY = [Fault.LOST_ANSWER, Fault.FAILED_AFTER, Fault.SILENT_AFTER]
NOT_DONE = [Fault.LOST_REQUEST, Fault.SLOW_DOWN, Fault.SILENT]


@pytest.fixture
async def store(ceph: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    """On Ceph RGW, through the proxy, and probed while nothing was broken."""
    place = {**ceph.place(), "endpoint_url": proxy.url}
    store = S3Store(**place, read_timeout=1.5, retry_seconds=6.0)  # type: ignore[arg-type]
    await store.capabilities()
    yield store
    proxy.rule = lambda _: None
    await store.close()


def done(proxy: FaultyS3, method: str) -> int:
    """How many requests of this kind the server carried out."""
    return sum(asked.method == method and status < 300 for asked, status in proxy.done)


# ---- every n-th request fails. Not every second: a write and its reading back are two requests, so
# that it would be the write each time.


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize("nth", [3, 4])
async def test_a_lone_writer_never_hears_of_another(
    store: S3Store, proxy: FaultyS3, fault: Fault, nth: int
) -> None:
    version = await store.create("a", b"-1")
    before = done(proxy, "PUT")
    proxy.rule = every(nth, fault)
    for number in range(8):
        while True:
            try:
                version = await store.replace("a", b"%d" % number, version)
                break
            except StorageUnavailable:
                continue  # the same again is always safe
    assert done(proxy, "PUT") - before == 8


@pytest.mark.parametrize("fault", BREAKS)
async def test_create_happens_once(store: S3Store, proxy: FaultyS3, fault: Fault) -> None:
    before = done(proxy, "PUT")
    proxy.rule = every(3, fault)
    for number in range(8):
        while True:
            try:
                await store.create(f"a/{number}", b"mine")
                break
            except StorageUnavailable:
                continue
    assert done(proxy, "PUT") - before == 8
    with pytest.raises(ObjectExists):
        await store.create("a/0", b"not mine")


@pytest.mark.parametrize("fault", [*BREAKS, Fault.TRUNCATED])
async def test_what_can_be_repeated_is_repeated(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    proxy.rule = every(2, fault)
    keys = [f"a/{number}" for number in range(4)]
    for key in keys:
        await store.put(key, key.encode())
        assert (await store.get(key)).data == key.encode()
    assert [row.key for row in (await store.list("a/")).objects] == keys
    await store.delete(keys)
    assert (await store.list("a/")).objects == []
    with pytest.raises(ObjectNotFound):
        await store.get("a/0")


# ---- one conditional write, one fault


@pytest.mark.parametrize("fault", DONE_ANYWAY)
async def test_a_write_whose_answer_is_lost_is_recognised(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    proxy.rule = once(fault, conditional)
    version = await store.create("a", b"1")
    proxy.rule = once(fault, conditional)
    version = await store.replace("a", b"2", version)
    assert (await store.get("a"))[:2] == (b"2", version)


@pytest.mark.parametrize("fault", NOT_DONE)
async def test_a_write_that_did_not_arrive_is_unknown_not_lost_to_another(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    version = await store.create("a", b"1")
    proxy.rule = once(fault, conditional)
    with pytest.raises(StorageUnavailable):
        await store.replace("a", b"2", version)
    proxy.rule = once(fault, conditional)
    with pytest.raises(StorageUnavailable):
        await store.create("b", b"1")
    assert await store.replace("a", b"2", version)
    assert await store.create("b", b"1")


@pytest.mark.parametrize("fault", [*DONE_ANYWAY, *NOT_DONE])
async def test_another_writer_is_told_of_whatever_else_fails(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    stale = await store.create("a", b"1")
    await store.replace("a", b"theirs", stale)
    proxy.rule = once(fault, conditional)
    with pytest.raises(ObjectChanged):
        await store.replace("a", b"2", stale)
    proxy.rule = once(fault, conditional)
    with pytest.raises(ObjectExists):
        await store.create("a", b"2")
    assert (await store.get("a")).data == b"theirs"


@pytest.mark.parametrize("code", [409, 412, 500])
async def test_a_refusal_is_believed_only_when_another_version_is_there(
    store: S3Store, proxy: FaultyS3, code: int
) -> None:
    version = await store.create("a", b"1")
    proxy.rule = once(Answer.error(code, "PreconditionFailed"), conditional)
    with pytest.raises(StorageUnavailable):
        await store.replace("a", b"2", version)


async def test_without_reading_back_the_outcome_is_unknown(store: S3Store, proxy: FaultyS3) -> None:
    version = await store.create("a", b"1")
    broken = False

    def rule(asked: Asked) -> Fault | None:
        nonlocal broken
        broken = broken or conditional(asked)
        return Fault.LOST_ANSWER if broken else None

    proxy.rule = rule
    with pytest.raises(StorageUnavailable):
        await store.replace("a", b"2", version)
    proxy.rule = lambda _: None
    assert await store.replace("a", b"2", version) == (await store.get("a")).version


async def test_after_a_silent_answer_there_is_time_to_look_more_than_once(
    ceph: S3Server, proxy: FaultyS3
) -> None:
    place = {**ceph.place(), "endpoint_url": proxy.url}
    # to connect, to wait and to spare: were the write given all of it, none would be left
    store = S3Store(**place, connect_timeout=3.0, read_timeout=1.0, retry_seconds=4.0)  # type: ignore[arg-type]
    await store.capabilities()
    faults = [Fault.SILENT_AFTER, Fault.SLOW_DOWN]
    proxy.rule = lambda _: faults.pop(0) if faults else None
    version = await store.create("a", bytes(1000))
    assert (await store.get("a")).version == version
    await store.close()


# ---- a store that does not come back


@pytest.mark.parametrize(
    "verdict",
    [
        Fault.LOST_REQUEST,
        Fault.SLOW_DOWN,
        Fault.SILENT,
        Answer.error(429, "TooManyRequests"),
        Answer.error(400, "RequestTimeout"),
        Answer(502, b"<html>bad gateway</html>"),
    ],
    ids=str,
)
async def test_a_store_that_is_down_is_unavailable_and_nothing_is_not_found(
    store: S3Store, proxy: FaultyS3, verdict: Fault | Answer
) -> None:
    store._retry_seconds = 0.3
    proxy.rule = lambda _: verdict
    with pytest.raises(StorageUnavailable):
        await store.get("a")
    with pytest.raises(StorageUnavailable):
        await store.list("")
    with pytest.raises(StorageUnavailable):
        await store.put("a", b"")
    assert (await store.check()).ok is False


async def test_half_an_object_is_never_given_back(store: S3Store, proxy: FaultyS3) -> None:
    store._retry_seconds = 0.3
    await store.put("a", b"1234")
    proxy.rule = always(Fault.TRUNCATED, lambda asked: asked.method == "GET")
    with pytest.raises(StorageUnavailable):
        await store.get("a")


async def test_retries_are_bounded_and_pause_in_between(store: S3Store, proxy: FaultyS3) -> None:
    proxy.rule = lambda _: Fault.SLOW_DOWN
    store._retry_seconds = 1.0
    before = len(proxy.asked)
    with pytest.raises(StorageUnavailable):
        await store.get("a")
    assert 1 < len(proxy.asked) - before < 40


async def test_a_time_is_given_to_the_whole_answer(store: S3Store, proxy: FaultyS3) -> None:
    """A time-out between two bytes does not bound an answer that trickles, nor a slow DNS."""
    store._patience, store._retry_seconds = 0.2, 0.0
    proxy.rule = always(Fault.SILENT, lambda asked: asked.method == "GET")
    with pytest.raises(StorageUnavailable, match="did not answer within"):
        await store.get("a")


# ---- the event loop


async def test_the_event_loop_runs_on_while_the_store_is_silent(
    ceph: S3Server, proxy: FaultyS3
) -> None:
    """The store answers only after the loop has turned: a call that blocks it would never end."""
    store = S3Store(**ceph.place() | {"endpoint_url": proxy.url}, read_timeout=30.0)  # type: ignore[arg-type]
    proxy.rule = once(Fault.SILENT, lambda _: True)
    calls = [store.get("a"), store.list(""), store.capabilities(), store.check()]
    work = asyncio.gather(*calls, return_exceptions=True)
    await asyncio.to_thread(proxy.silenced.wait)
    for _ in range(100):
        await asyncio.sleep(0)
    proxy.release()
    results = await work
    assert isinstance(results[0], ObjectNotFound)
    await store.close()
