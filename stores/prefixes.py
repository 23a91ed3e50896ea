"""What concerns all that lies below one prefix, in any store."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage import Listed, Store


class Removed(NamedTuple):
    """What a deletion removed."""

    objects: int
    bytes: int


async def list_all(store: Store, prefix: str, after: str | None = None) -> AsyncIterator[Listed]:
    """All that begins with `prefix` and comes after the key `after`, in key order, page by page."""
    while True:
        page = await store.list(prefix, start_after=after)
        for row in page.objects:
            yield row
        if page.next is None:
            return
        after = page.next


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
