"""The folders directly under a prefix, on every store there is: page by page, each name once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.test_storage_contract import put_all

if TYPE_CHECKING:
    from storage import Store

#: Each sorts next to `a`, on the one side of its `/` or on the other.
TRICKY = ["a", "a!", "a-b", "a.b", "a0", "a0b", "aa", "A", "a b", "é", "\uff5e", "😀"]


async def pages_of(store: Store, prefix: str, limit: int) -> list[list[str]]:
    """All names, page by page."""
    pages, after = [], None
    while True:
        page = await store.list_folders(prefix, start_after=after, limit=limit)
        pages.append(page.names)
        if page.next is None:
            return pages
        assert page.next == page.names[-1]
        after = page.next


def in_key_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: f"{name}/".encode())


async def test_where_nothing_is_there_are_no_folders(store: Store) -> None:
    assert await store.list_folders("") == ([], None)
    assert await store.list_folders("a/b/") == ([], None)


async def test_a_folder_is_named_once_however_much_lies_below_it(store: Store) -> None:
    await put_all(store, ["p/a/1", "p/a/2", "p/a/b/c/3", "p/b/x", "q/c/1"])
    assert await store.list_folders("p/") == (["a", "b"], None)
    assert await store.list_folders("p/a/") == (["b"], None)
    assert await store.list_folders("") == (["p", "q"], None)


async def test_an_object_is_no_folder(store: Store) -> None:
    await put_all(store, ["p/0", "p/a-object", "p/b/1", "p/c"])
    assert await store.list_folders("p/") == (["b"], None)


async def test_a_folder_goes_with_its_last_object(store: Store) -> None:
    await put_all(store, ["p/a/1", "p/b/c/1"])
    await store.delete(["p/b/c/1"])
    assert await store.list_folders("p/") == (["a"], None)


async def test_twenty_five_folders_come_in_three_pages(store: Store) -> None:
    names = [f"{number:02}" for number in range(25)]
    await put_all(store, [f"p/{name}/{file}" for name in names for file in "xy"])
    pages = await pages_of(store, "p/", limit=10)
    assert pages == [names[:10], names[10:20], names[20:]]


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_folders_come_in_key_order_whatever_their_names(store: Store, limit: int) -> None:
    await put_all(store, [f"p/{name}/{file}" for name in TRICKY for file in ("1", "😀/2")])
    pages = await pages_of(store, "p/", limit=limit)
    assert [name for names in pages for name in names] == in_key_order(TRICKY)


async def test_a_page_starts_after_a_folder_as_a_whole(store: Store) -> None:
    await put_all(store, [f"p/{name}/1" for name in TRICKY])
    names = in_key_order(TRICKY)
    for index, name in enumerate(names):
        page = await store.list_folders("p/", start_after=name)
        assert page.names == names[index + 1 :]


async def test_a_page_may_start_after_what_is_not_there(store: Store) -> None:
    await put_all(store, ["p/a/1", "p/c/1"])
    assert (await store.list_folders("p/", start_after="b")).names == ["c"]
    assert (await store.list_folders("p/", start_after="d")).names == []


@pytest.mark.parametrize("place", ["moto", "ceph"], indirect=True)
async def test_an_object_may_have_the_name_of_a_folder(store: Store) -> None:
    """In a bucket; on a disk it cannot."""
    await put_all(store, ["p/a", "p/a/1", "p/a0", "p/a0/1"])
    assert (await store.list_folders("p/")).names == ["a", "a0"]
    assert (await store.list_folders("p/", start_after="a")).names == ["a0"]


async def test_objects_between_folders_use_up_no_page(store: Store) -> None:
    objects = [f"p/{letter}{number}" for letter in "acz" for number in range(5)]
    await put_all(store, [*objects, "p/b/1", "p/d/1"])
    names = [name for page in await pages_of(store, "p/", limit=2) for name in page]
    assert names == ["b", "d"]


@pytest.mark.parametrize("name", ["a\\b", "a\u00a0", "a\n", "a/x"])
async def test_a_page_goes_on_after_a_name_of_other_origin(store: Store, name: str) -> None:
    await put_all(store, ["p/a/1", "p/b/1"])
    assert "b" in (await store.list_folders("p/", start_after=name)).names
