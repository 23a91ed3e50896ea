"""Links, on every store there is, used by a client without keys.

What they do not allow is in test_s3_presign.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import httpx
import pytest

from storage import MAX_PAGE, ObjectNotFound, PartsMissing, PresignUnsupported, WantedLink
from tests import servers
from tests.test_storage_contract import AWKWARD, fetch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage import PartLinks, Store

MIB = 1 << 20
PART = 5 * MIB
#: Three parts, the last of them short.
SIZE = 2 * PART + 1000


async def send(links: PartLinks, data: bytes, numbers: Iterable[int] | None = None) -> None:
    """Parts of `data` to their links; without `numbers`, all."""
    async with httpx.AsyncClient() as client:
        for number in range(len(links.urls)) if numbers is None else numbers:
            part = data[number * PART : (number + 1) * PART]
            (await client.put(links.urls[number], content=part)).raise_for_status()


async def test_a_link_can_be_fetched_without_keys(store: Store) -> None:
    await store.put("a/b", b"123")
    assert await fetch(await store.presign_get("a/b", expires_in=60)) == b"123"


async def test_making_a_link_asks_nobody(store: Store) -> None:
    assert "nothing-here" in await store.presign_get("nothing-here", expires_in=60)


@pytest.mark.parametrize("place", servers.S3_STORES, indirect=True)
async def test_a_link_knows_the_files_type_and_name(store: Store) -> None:
    await store.put("a/b", b"123", content_type="image/png")
    url = await store.presign_get("a/b", expires_in=60, filename="my sample.png")
    async with httpx.AsyncClient() as client:
        headers = (await client.get(url)).raise_for_status().headers
    assert headers["content-type"] == "image/png"
    assert "my sample.png" in headers["content-disposition"]


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_a_link_can_be_written_to_without_keys(store: Store) -> None:
    url = await store.presign_put("a/b", expires_in=60, content_type="text/plain", size=3)
    async with httpx.AsyncClient() as client:
        answer = await client.put(url, content=b"123", headers={"content-type": "text/plain"})
    answer.raise_for_status()
    assert (await store.get("a/b")).data == b"123"


# ---- many at once


async def test_many_links_come_in_the_order_of_what_they_lead_to(store: Store) -> None:
    keys = [key for key in AWKWARD if "/" in key]
    for key in keys:
        await store.put(key, key.encode())
    links = await store.presign_gets([WantedLink(key) for key in keys], expires_in=60)
    assert [await fetch(link) for link in links] == [key.encode() for key in keys]


@pytest.mark.parametrize("place", servers.S3_STORES, indirect=True)
async def test_each_of_many_links_knows_its_own_name(store: Store) -> None:
    await store.put("a", b"1")
    wanted = [WantedLink("a", "one.txt"), WantedLink("a"), WantedLink("a", "näme.txt")]
    links = await store.presign_gets(wanted, expires_in=60)
    async with httpx.AsyncClient() as client:
        answers = [(await client.get(link)).raise_for_status() for link in links]
    named = [answer.headers.get("content-disposition") for answer in answers]
    assert "one.txt" in named[0]
    assert named[1] is None
    assert "n%C3%A4me.txt" in named[2]


async def test_no_links_are_wanted(store: Store) -> None:
    assert await store.presign_gets([], expires_in=60) == []


@pytest.mark.parametrize("place", servers.S3_STORES, indirect=True)
async def test_a_thousand_links_do_not_hold_the_event_loop(store: Store) -> None:
    await store.capabilities()
    wanted = [WantedLink(f"folder/{number}", "name.txt") for number in range(MAX_PAGE)]
    minting = asyncio.create_task(store.presign_gets(wanted, expires_in=60))
    turns = 0
    while not minting.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(set(minting.result())) == MAX_PAGE
    assert turns > 10


# ---- files in parts


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_parts_that_a_caller_sends_become_an_object(store: Store) -> None:
    data = os.urandom(SIZE)
    links = await store.presign_parts("a/b", size=SIZE, part_size=PART, expires_in=60)
    assert len(links.urls) == 3
    await send(links, data)
    with pytest.raises(ObjectNotFound):
        await store.stat("a/b")
    await store.join_parts("a/b", links.upload_id, size=SIZE)
    assert (await store.get("a/b")).data == data


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_parts_may_come_in_any_order_and_twice(store: Store) -> None:
    data = os.urandom(SIZE)
    links = await store.presign_parts("a", size=SIZE, part_size=PART, expires_in=60)
    await send(links, bytes(SIZE), [2, 0])
    await send(links, data, [1, 2, 0])
    await store.join_parts("a", links.upload_id, size=SIZE)
    assert (await store.get("a")).data == data


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
@pytest.mark.parametrize("size", [1, PART - 1, PART])
async def test_a_small_file_is_one_part(store: Store, size: int) -> None:
    links = await store.presign_parts("a", size=size, part_size=PART, expires_in=60)
    assert len(links.urls) == 1
    await send(links, bytes(size))
    await store.join_parts("a", links.upload_id, size=size)
    assert (await store.stat("a")).size == size


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_a_file_in_parts_has_the_type_that_was_announced(store: Store) -> None:
    links = await store.presign_parts(
        "a", size=3, part_size=PART, expires_in=60, content_type="image/png"
    )
    async with httpx.AsyncClient() as client:
        answer = await client.put(
            links.urls[0], content=b"123", headers={"content-type": "text/html"}
        )
        answer.raise_for_status()
        await store.join_parts("a", links.upload_id, size=3)
        answer = await client.get(await store.presign_get("a", expires_in=60))
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
@pytest.mark.parametrize(
    ("sent", "came"), [([], 0), ([0, 1], 2 * PART), ([1, 2], PART + 1000), ([0, 2], PART + 1000)]
)
async def test_a_part_that_is_missing_is_said_and_may_still_come(
    store: Store, sent: list[int], came: int
) -> None:
    links = await store.presign_parts("a", size=SIZE, part_size=PART, expires_in=60)
    await send(links, bytes(SIZE), sent)
    with pytest.raises(PartsMissing, match=f"{came} of {SIZE} bytes"):
        await store.join_parts("a", links.upload_id, size=SIZE)
    with pytest.raises(ObjectNotFound):
        await store.stat("a")
    await send(links, bytes(SIZE), {0, 1, 2} - set(sent))
    await store.join_parts("a", links.upload_id, size=SIZE)


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_parts_that_add_up_with_a_gap_are_not_joined(store: Store) -> None:
    links = await store.presign_parts("a", size=2 * PART, part_size=PART, expires_in=60)
    await send(links, bytes(2 * PART), [1])
    with pytest.raises(PartsMissing, match="parts: 1"):
        await store.join_parts("a", links.upload_id, size=PART)


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_joining_again_is_the_same_joining(store: Store) -> None:
    links = await store.presign_parts("a", size=3, part_size=PART, expires_in=60)
    await send(links, b"123")
    for _ in range(3):
        await store.join_parts("a", links.upload_id, size=3)
    assert (await store.get("a")).data == b"123"
    with pytest.raises(PartsMissing):
        await store.join_parts("a", links.upload_id, size=4)


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_an_upload_that_never_was_has_no_parts(store: Store) -> None:
    with pytest.raises(PartsMissing, match="no such upload"):
        await store.join_parts("a", "no-such-upload", size=3)


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
async def test_an_object_that_was_there_before_is_not_the_outcome_of_an_upload(
    store: Store,
) -> None:
    """However well its size fits: the upload was thrown away, or never begun."""
    await store.put("a", b"123")
    with pytest.raises(PartsMissing, match="no such upload"):
        await store.join_parts("a", "0123456789abcdef.no-such-upload", size=3)


@pytest.mark.parametrize("place", servers.LINK_STORES, indirect=True)
@pytest.mark.parametrize(
    ("size", "part_size"),
    [(0, PART), (-1, PART), (1, PART - 1), (1, (5 << 30) + 1), (10_000 * PART + 1, PART)],
)
async def test_parts_that_no_store_takes_are_refused(
    store: Store, size: int, part_size: int
) -> None:
    with pytest.raises(ValueError, match="part"):
        await store.presign_parts("a", size=size, part_size=part_size, expires_in=60)


@pytest.mark.parametrize("place", ["local"], indirect=True)
async def test_a_folder_has_no_links_to_write_to(store: Store) -> None:
    with pytest.raises(PresignUnsupported):
        await store.presign_parts("a", size=3, part_size=PART, expires_in=60)
    with pytest.raises(PresignUnsupported):
        await store.presign_put("a", expires_in=60)
