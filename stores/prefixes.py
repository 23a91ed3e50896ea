"""What concerns all that lies below one prefix, in any store."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from storage import InvalidKey, check_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage import Listed, Store


class Removed(NamedTuple):
    """What a deletion removed."""

    objects: int
    bytes: int


def is_key(key: str) -> bool:
    """Whether a worker can name this object; a bucket may hold others."""
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True


async def list_all(store: Store, prefix: str, after: str | None = None) -> AsyncIterator[Listed]:
    """All that begins with `prefix` and comes after the key `after`, in key order, page by page.

    Objects that no worker can name are skipped. A whole page of them ends the list.
    """
    while True:
        page = await store.list(prefix, start_after=after)
        rows = [row for row in page.objects if is_key(row.key)]
        for row in rows:
            yield row
        if page.next is None or not rows:
            return
        after = rows[-1].key


async def delete_all(store: Store, prefix: str) -> Removed:
    """Remove all that begins with `prefix`."""
    objects = size = 0
    while True:
        page = await store.list(prefix)
        if page.objects:
            await store.delete([row.key for row in page.objects])
        objects += len(page.objects)
        size += sum(row.size for row in page.objects)
        if page.next is None:
            return Removed(objects, size)
