"""What a bucket really does is found out, said, and worked with.

moto behind a proxy that lets one request through at a time can do everything but safe links to
write, as it checks no signatures; each test takes one thing away from it. Links to write are tried
in test_link_probe.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from storage import (
    ObjectChanged,
    ObjectExists,
    PresignUnsupported,
    StorageMisconfigured,
    StorageUnavailable,
)
from stores.probe import NO_CONDITIONS, NO_LINKS, NO_LINKS_TO_WRITE, NO_MULTI_DELETE
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, Fault, FaultyS3, always, conditional, every

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.faulty_s3 import Asked
    from tests.servers import S3Server


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyS3]:
    with FaultyS3(moto.endpoint_url) as proxy:
        proxy.one_at_a_time = True
        yield proxy


@pytest.fixture
async def store(moto: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    place = {**moto.place(), "endpoint_url": proxy.url}
    store = S3Store(**place, retry_seconds=4.0)  # type: ignore[arg-type]
    yield store
    await store.close()


def link(asked: Asked) -> bool:
    return "X-Amz-Signature=" in asked.path


def multi_delete(asked: Asked) -> bool:
    return asked.method == "POST" and "?delete" in asked.path


async def left_over(store: S3Store) -> list[str]:
    return [row.key for row in (await store.list("locks/")).objects]


async def test_a_store_that_can_do_everything(store: S3Store) -> None:
    assert await store.capabilities() == (True, True, True, False, (NO_LINKS_TO_WRITE,))
    assert await left_over(store) == []


async def test_a_bucket_in_another_region_is_found_at_the_start(
    store: S3Store, proxy: FaultyS3
) -> None:
    elsewhere = Answer.error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")
    proxy.rule = always(elsewhere, lambda asked: asked.path.endswith("/link"))
    with pytest.raises(StorageMisconfigured, match="set S3_REGION to eu-west-1"):
        await store.capabilities()


# ---- conditional writes


def refuse(proxy: FaultyS3) -> None:
    """As Backblaze B2."""
    proxy.rule = always(Answer.error(501, "NotImplemented"), conditional)


def find_invalid(proxy: FaultyS3) -> None:
    proxy.rule = always(Answer.error(400, "InvalidArgument"), conditional)


def ignore(proxy: FaultyS3) -> None:
    """As Google's S3 API."""
    proxy.hidden = {"if-match", "if-none-match"}


def ignore_versions(proxy: FaultyS3) -> None:
    proxy.hidden = {"if-match"}


def check_then_write(proxy: FaultyS3) -> None:
    """Two writers are let through if both were in order when they came."""
    proxy.hidden = {"if-match", "if-none-match"}
    both = threading.Barrier(2)
    seen: dict[str, int] = {}

    def rule(asked: Asked) -> Answer | None:
        if not conditional(asked):
            return None
        seen[asked.path] = seen.get(asked.path, 0) + 1
        return None if seen[asked.path] <= 2 else Answer.error(412, "PreconditionFailed")

    def before(asked: Asked) -> None:
        if conditional(asked):
            both.wait(10)

    proxy.rule, proxy.before = rule, before


def match_no_version(proxy: FaultyS3) -> None:
    """Every If-Match is refused, also one on the version that is there."""
    failed = Answer.error(412, "PreconditionFailed")
    proxy.rule = always(failed, lambda asked: "if-match" in asked.headers and asked.method == "PUT")


def lose_every_key(proxy: FaultyS3) -> None:
    missing = Answer.error(404, "NoSuchKey")
    proxy.rule = always(
        missing, lambda asked: "if-match" in asked.headers and asked.method == "PUT"
    )


def create_nothing(proxy: FaultyS3) -> None:
    """Every If-None-Match is refused, also where nothing is."""
    failed = Answer.error(412, "PreconditionFailed")
    proxy.rule = always(
        failed, lambda asked: "if-none-match" in asked.headers and asked.method == "PUT"
    )


@pytest.mark.parametrize(
    "lack",
    [
        refuse,
        find_invalid,
        ignore,
        ignore_versions,
        check_then_write,
        match_no_version,
        lose_every_key,
        create_nothing,
    ],
)
async def test_without_conditional_writes_there_is_one_writer(
    store: S3Store, proxy: FaultyS3, lack: object
) -> None:
    assert callable(lack)
    lack(proxy)
    found = await store.capabilities()
    assert found[:3] == (False, True, True)
    assert found.degraded == (NO_CONDITIONS, NO_LINKS_TO_WRITE)
    assert await left_over(store) == []


@pytest.mark.parametrize("lack", [refuse, match_no_version, create_nothing])
async def test_the_one_writer_still_compares_before_it_swaps(
    store: S3Store, proxy: FaultyS3, lack: object
) -> None:
    assert callable(lack)
    lack(proxy)
    version = await store.create("a", b"1")
    with pytest.raises(ObjectExists):
        await store.create("a", b"2")
    newer = await store.replace("a", b"2", version)
    with pytest.raises(ObjectChanged):
        await store.replace("a", b"3", version)
    assert (await store.get("a"))[:2] == (b"2", newer)


async def test_in_one_process_the_one_writer_mode_is_atomic(
    store: S3Store, proxy: FaultyS3
) -> None:
    refuse(proxy)

    async def won(number: int) -> bool:
        try:
            await store.create("a", b"%d" % number)
        except ObjectExists:
            return False
        return True

    assert sum(await asyncio.gather(*map(won, range(16)))) == 1


async def test_nobody_writes_before_the_mode_is_known(store: S3Store, proxy: FaultyS3) -> None:
    """Many first writes wait for one probe."""
    refuse(proxy)
    await asyncio.gather(*(store.create(f"a/{number}", b"1") for number in range(8)))
    probes = {
        asked.path.split("/locks/")[1].split("/")[0]
        for asked in proxy.asked
        if "/locks/probe-" in asked.path
    }
    assert len(probes) == 1
    assert not any(conditional(asked) and "/a/" in asked.path for asked in proxy.asked)


# ---- links


@pytest.mark.parametrize(
    "refusal",
    [Answer.error(403, "AccessDenied"), Answer.error(501, "NotImplemented"), Answer(200, b"login")],
    ids=str,
)
async def test_a_store_without_links_says_so(
    store: S3Store, proxy: FaultyS3, refusal: Answer
) -> None:
    proxy.rule = always(refusal, link)
    found = await store.capabilities()
    assert found[:4] == (True, False, True, False)
    assert found.degraded == (NO_LINKS,)
    with pytest.raises(PresignUnsupported):
        await store.presign_get("a", expires_in=60)
    with pytest.raises(PresignUnsupported):
        await store.presign_put("a", expires_in=60)


# ---- deleting many


@pytest.mark.parametrize(
    "refusal",
    [
        Answer.error(501, "NotImplemented"),
        Answer.error(405, "MethodNotAllowed"),
        Answer(200, b"<DeleteResult></DeleteResult>"),  # says so, and does nothing
    ],
    ids=str,
)
async def test_a_store_without_multi_delete_is_cleared_one_by_one(
    store: S3Store, proxy: FaultyS3, refusal: Answer
) -> None:
    proxy.rule = always(refusal, multi_delete)
    found = await store.capabilities()
    assert found[:3] == (True, True, False)
    assert found.degraded == (NO_LINKS_TO_WRITE, NO_MULTI_DELETE)
    for key in ("a", "b", "c"):
        await store.put(key, b"")
    await store.delete(["a", "b", "not there"])
    assert [row.key for row in (await store.list("")).objects] == ["c"]


async def test_a_store_that_lacks_everything_as_runpods_volumes_do(
    store: S3Store, proxy: FaultyS3
) -> None:
    lacks = [link, multi_delete, conditional]
    proxy.rule = always(
        Answer.error(501, "NotImplemented"), lambda asked: any(lack(asked) for lack in lacks)
    )
    found = await store.capabilities()
    assert found[:4] == (False, False, False, False)
    assert found.degraded == (NO_CONDITIONS, NO_LINKS, NO_MULTI_DELETE)


# ---- a store that fails meanwhile


@pytest.mark.parametrize("when", [conditional, link, multi_delete], ids=lambda f: f.__name__)
async def test_a_failure_is_not_remembered_as_a_lack(
    store: S3Store, proxy: FaultyS3, when: object
) -> None:
    store._retry_seconds = 0.3
    assert callable(when)
    proxy.rule = always(Fault.SLOW_DOWN, when)
    with pytest.raises(StorageUnavailable):
        await store.capabilities()
    with pytest.raises(StorageUnavailable):
        await store.create("a", b"1")
    proxy.rule = lambda _: None
    assert (await store.capabilities()).degraded == (NO_LINKS_TO_WRITE,)
    await store.create("a", b"1")


async def test_keys_that_are_revoked_meanwhile_are_no_lack(store: S3Store, proxy: FaultyS3) -> None:
    revoked = False

    def rule(asked: Asked) -> Answer | None:
        nonlocal revoked
        revoked = revoked or conditional(asked)
        return Answer.error(403, "AccessDenied") if revoked else None

    proxy.rule = rule
    with pytest.raises(StorageMisconfigured):
        await store.capabilities()


@pytest.mark.parametrize("fault", [Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.SLOW_DOWN])
async def test_an_unsteady_store_is_seen_for_what_it_is(
    store: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    proxy.rule = every(7, fault)
    assert (await store.capabilities()).degraded == (NO_LINKS_TO_WRITE,)


async def test_who_gives_up_waiting_does_not_stop_the_probe_for_others(
    store: S3Store, proxy: FaultyS3
) -> None:
    proxy.rule = always(Fault.SILENT, lambda _: not proxy._released.is_set())
    impatient, patient = (asyncio.create_task(store.capabilities()) for _ in range(2))
    await asyncio.to_thread(proxy.silenced.wait)
    impatient.cancel()
    proxy.release()
    assert (await patient).degraded == (NO_LINKS_TO_WRITE,)
    assert impatient.cancelled()
