"""What every store promises, on every store there is: a folder, moto, Ceph RGW, your own bucket.

Files are in test_storage_files and test_storage_streams, folders in test_storage_folders, links in
test_storage_links, races in test_storage_races, bad keys in test_storage_keys.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from storage import (
    MAX_RANGE,
    InvalidKey,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
)
from tests import servers
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage import Store

MIB = 1 << 20

#: Legal, and each a way to get quoting, signing or sorting wrong.
AWKWARD = [
    "with space/and  two",
    "plus+and%2Fpercent%",
    "hash#question?ampersand&equals=",
    "'single' \"double\" `back`",
    "~tilde/.hidden/..dots/trailing.",
    "umlaut-ä/日本語/emoji-😀",
    "<angle>{brace}[bracket]|pipe^caret",
    "star*dollar$at@colon:semi;comma,",
    "-dash/--option",
    "a" * 200 + "/" + "b" * 200 + "/" + "c" * 200,
]


async def put_all(store: Store, keys: Iterable[str]) -> None:
    """Empty objects, a few at a time."""
    gate = asyncio.Semaphore(16)

    async def put(key: str) -> None:
        async with gate:
            await store.put(key, b"")

    await asyncio.gather(*map(put, keys))


async def fetch(url: str) -> bytes:
    """What a link leads to."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path)).read_bytes()
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).raise_for_status().content


# ---- reading and writing


@pytest.mark.parametrize("data", [b"", b"x", b"\x00\xff\r\n" * 1000], ids=["empty", "one", "some"])
async def test_what_is_put_is_what_is_got(store: Store, data: bytes) -> None:
    version = await store.put("a/b", data)
    stored = await store.get("a/b")
    assert (stored.data, stored.version) == (data, version)


async def test_put_writes_over_whatever_is_there(store: Store) -> None:
    first = await store.put("a", b"1")
    second = await store.put("a", b"2")
    assert first != second
    assert (await store.get("a")).data == b"2"


async def test_a_missing_object_is_not_found(store: Store) -> None:
    with pytest.raises(ObjectNotFound):
        await store.get("a")


async def test_a_conditional_get_of_an_unchanged_object_gives_back_the_same_bytes(
    store: Store,
) -> None:
    await store.put("a", b"1")
    cached = (await store.get("a"))._replace(age_seconds=-1.0)
    again = await store.get("a", cached=cached)
    assert again.data is cached.data
    assert again.version == cached.version
    assert again.age_seconds >= 0


async def test_a_conditional_get_of_a_changed_object_gives_the_new_one(store: Store) -> None:
    await store.put("a", b"1")
    cached = await store.get("a")
    version = await store.put("a", b"2")
    assert (await store.get("a", cached=cached))[:2] == (b"2", version)


async def test_a_conditional_get_of_a_removed_object_is_not_found(store: Store) -> None:
    await store.put("a", b"1")
    cached = await store.get("a")
    await store.delete(["a"])
    with pytest.raises(ObjectNotFound):
        await store.get("a", cached=cached)


async def test_an_objects_age_grows_and_starts_anew_when_it_is_written(store: Store) -> None:
    await store.put("a", b"1")
    first = await store.get("a")
    assert first.age_seconds >= 0
    async with asyncio.timeout(PATIENCE):
        # A clock gives no signal, so ask it again and again.
        while (  # noqa: ASYNC110
            older := await store.get("a", cached=first)
        ).age_seconds < first.age_seconds + 2:
            await asyncio.sleep(0.05)
    assert older.modified == first.modified
    await store.put("a", b"2")
    newer = await store.get("a")
    assert newer.modified > first.modified
    assert newer.age_seconds < older.age_seconds


async def test_a_look_at_an_object_tells_its_size_and_when_it_was_written(store: Store) -> None:
    await store.put("a", b"123")
    facts = await store.stat("a")
    assert facts.size == 3
    assert facts.modified == pytest.approx((await store.get("a")).modified, abs=1.0)


async def test_an_object_that_was_replaced_looks_different(store: Store) -> None:
    await store.put("a", b"123")
    first = await store.stat("a")
    assert (await store.stat("a")).version == first.version
    await store.put("a", b"456")
    assert (await store.stat("a")).version != first.version


async def test_there_is_nothing_to_look_at_where_nothing_is(store: Store) -> None:
    await store.put("a/b", b"")
    for key in ("a", "a/c", "b"):
        with pytest.raises(ObjectNotFound):
            await store.stat(key)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 1, b"0"),
        (0, 10, b"0123456789"),
        (3, 4, b"3456"),
        (9, 1, b"9"),
        (8, 5, b"89"),
        (0, MAX_RANGE, b"0123456789"),
        (10, 1, b""),
        (11, 1, b""),
        (10**12, MAX_RANGE, b""),
    ],
)
async def test_a_range_ends_where_the_object_does(
    store: Store, offset: int, length: int, expected: bytes
) -> None:
    await store.put("a", b"0123456789")
    assert await store.get_range("a", offset=offset, length=length) == expected


async def test_an_empty_object_has_only_empty_ranges(store: Store) -> None:
    await store.put("a", b"")
    assert await store.get_range("a", offset=0, length=1) == b""


async def test_the_longest_range_comes_whole(store: Store) -> None:
    data = b"".join(b"%015d\n" % number for number in range(MAX_RANGE // 16 + 1))
    await store.put("a", data)
    assert await store.get_range("a", offset=16, length=MAX_RANGE) == data[16:]


async def test_there_is_no_range_of_a_missing_object(store: Store) -> None:
    for offset in (0, 5):
        with pytest.raises(ObjectNotFound):
            await store.get_range("a", offset=offset, length=1)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, -1), (0, MAX_RANGE + 1)])
async def test_a_range_that_makes_no_sense_is_refused(
    store: Store, offset: int, length: int
) -> None:
    await store.put("a", b"123")
    with pytest.raises(ValueError, match="range"):
        await store.get_range("a", offset=offset, length=length)


# ---- compare-and-swap


async def test_create_writes_where_nothing_was(store: Store) -> None:
    version = await store.create("a", b"1")
    assert (await store.get("a"))[:2] == (b"1", version)


async def test_create_leaves_what_is_there_alone(store: Store) -> None:
    version = await store.put("a", b"1")
    with pytest.raises(ObjectExists):
        await store.create("a", b"2")
    assert (await store.get("a"))[:2] == (b"1", version)


async def test_create_again_with_the_same_bytes_is_the_same_create(store: Store) -> None:
    assert await store.create("a", b"nonce") == await store.create("a", b"nonce")


async def test_create_works_again_after_delete(store: Store) -> None:
    await store.create("a", b"1")
    await store.delete(["a"])
    await store.create("a", b"2")
    assert (await store.get("a")).data == b"2"


async def test_replace_writes_over_exactly_the_version_it_names(store: Store) -> None:
    version = await store.create("a", b"0")
    for number in range(1, 5):
        version = await store.replace("a", b"%d" % number, version)
    assert (await store.get("a"))[:2] == (b"4", version)


async def test_replace_of_a_stale_version_changes_nothing(store: Store) -> None:
    stale = await store.create("a", b"1")
    version = await store.replace("a", b"2", stale)
    with pytest.raises(ObjectChanged):
        await store.replace("a", b"3", stale)
    assert (await store.get("a"))[:2] == (b"2", version)


async def test_replace_of_a_missing_object_makes_none(store: Store) -> None:
    version = await store.create("a", b"1")
    await store.delete(["a"])
    with pytest.raises(ObjectChanged):
        await store.replace("a", b"2", version)
    with pytest.raises(ObjectNotFound):
        await store.get("a")


async def test_replace_again_with_the_same_bytes_is_the_same_replace(store: Store) -> None:
    first = await store.create("a", b"1")
    second = await store.replace("a", b"nonce", first)
    assert await store.replace("a", b"nonce", first) == second


# ---- listing and removing


async def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert await store.list("") == ([], None)
    assert await store.list("a/b/") == ([], None)


async def test_a_row_says_how_large_and_how_old(store: Store) -> None:
    await store.put("a", b"123")
    (row,) = (await store.list("")).objects
    assert (row.key, row.size) == ("a", 3)
    # S3 lists with milliseconds and answers GET with seconds
    assert row.modified == pytest.approx((await store.get("a")).modified, abs=1.0)


async def test_keys_are_listed_in_the_order_of_their_bytes(store: Store) -> None:
    keys = ["aa", "a.b", "a/b/c", "a0", "A", "z", "é", "\uff5e", "😀", "a-b", "b/x/1", "b/x-1"]
    await put_all(store, keys)
    in_order = sorted(keys, key=str.encode)
    assert await servers.keys_of(store) == in_order
    assert await servers.keys_of(store, limit=1) == in_order
    for index, key in enumerate(in_order):
        page = await store.list("", start_after=key)
        assert [row.key for row in page.objects] == in_order[index + 1 :]


async def test_more_than_a_thousand_keys_come_in_pages(store: Store) -> None:
    keys = [f"index/{number:05}" for number in range(1005)]
    await put_all(store, keys)
    first = await store.list("index/")
    assert [row.key for row in first.objects] == keys[:1000]
    assert first.next == keys[999]
    second = await store.list("index/", start_after=first.next)
    assert [row.key for row in second.objects] == keys[1000:]
    assert second.next is None


async def test_a_page_that_is_just_full_is_the_last(store: Store) -> None:
    await put_all(store, ["a", "b"])
    assert (await store.list("", limit=2)).next is None
    assert (await store.list("", limit=1)).next == "a"


async def test_start_after_needs_not_be_a_key(store: Store) -> None:
    await put_all(store, ["a/1", "a/3", "a/5/x"])
    page = await store.list("a/", start_after="a/2")
    assert [row.key for row in page.objects] == ["a/3", "a/5/x"]
    assert (await store.list("a/", start_after="b")).objects == []


async def test_a_prefix_is_a_folder_not_a_beginning(store: Store) -> None:
    await put_all(store, ["foo/1", "foo/2/x", "foobar/1", "foo.txt"])
    assert await servers.keys_of(store, "foo/") == ["foo/1", "foo/2/x"]
    with pytest.raises(InvalidKey, match="'/'"):
        await store.list("foo")


async def test_delete_removes_these_and_no_others(store: Store) -> None:
    await put_all(store, ["a", "b", "c/d", "c/e"])
    await store.delete(["a", "c/d"])
    assert await servers.keys_of(store) == ["b", "c/e"]


async def test_delete_of_what_is_not_there_is_no_error(store: Store) -> None:
    await put_all(store, ["b"])
    await store.delete(["a", "b-c"])
    await store.delete([])
    assert await servers.keys_of(store) == ["b"]


async def test_delete_takes_more_keys_than_fit_into_a_request(store: Store) -> None:
    keys = [f"a/{number}" for number in range(2100)]
    there = [keys[0], keys[999], keys[1000], keys[1999], keys[2000], keys[-1]]
    await put_all(store, [*there, "b"])
    await store.delete(keys)
    assert await servers.keys_of(store) == ["b"]


@pytest.mark.parametrize("key", AWKWARD)
async def test_awkward_keys_work_everywhere(store: Store, key: str, tmp_path: Path) -> None:
    version = await store.create(key, key.encode())
    await store.replace(key, b"2", version)
    assert (await store.get(key)).data == b"2"
    assert await servers.keys_of(store) == [key]
    folder = key.rpartition("/")[0]
    if folder:
        assert await servers.keys_of(store, f"{folder}/") == [key]
    await store.download(key, tmp_path / "file")
    assert await fetch(await store.presign_get(key, expires_in=60)) == b"2"
    await store.delete([key])
    assert await servers.keys_of(store) == []


# ---- the store as a whole


@pytest.mark.parametrize(
    ("data", "found"), [(b"", b""), (b"12", b"12"), (b"123", b"123"), (b"12345", b"123")]
)
async def test_the_start_of_an_object_is_read_with_its_age_and_version(
    store: Store, data: bytes, found: bytes
) -> None:
    await store.put("a", data)
    start = await store.get("a", limit=3)
    assert (start.data, start.modified) == (found, (await store.get("a")).modified)
    assert start.age_seconds >= 0
    await store.put("a", b"another")
    assert (await store.get("a", limit=3)).version != start.version
    with pytest.raises(ObjectNotFound):
        await store.get("b", limit=3)


async def test_a_row_of_a_list_has_another_version_when_the_bytes_are_others(store: Store) -> None:
    versions = set()
    for data in (b"one", b"two"):
        await store.put("a", data)
        [row] = (await store.list("")).objects
        versions.add(row.version)
    assert len(versions) == 2
    assert "" not in versions


async def test_check_makes_a_round_trip_and_leaves_nothing(store: Store) -> None:
    health = await store.check()
    assert health.ok, health.message
    assert health.round_trip_ms is not None
    assert health.round_trip_ms > 0
    assert await servers.keys_of(store) == []


@servers.on_strict
async def test_a_good_store_can_do_everything(store: Store) -> None:
    assert await store.capabilities() == (True, True, True, True, ())
    assert await servers.keys_of(store) == []


async def test_the_url_names_the_store_and_no_secret(store: Store) -> None:
    assert store.url.startswith(("file:///", "s3://"))
    assert "secret" not in store.url
