"""What concerns all that lies below one prefix, in any store."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from storage import MAX_PAGE, InvalidKey, StorageMisconfigured, check_key, check_listed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from storage import Listed, Store
    from utils import WorkerError


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


def is_removable(key: str) -> bool:
    """Whether `delete` takes this key, which a store has listed."""
    try:
        check_listed(key)
    except InvalidKey:
        return False
    return True


async def list_all(store: Store, prefix: str, after: str | None = None) -> AsyncIterator[Listed]:
    """All that begins with `prefix` and comes after the key `after`, in key order, page by page.

    Objects that no worker can name are skipped.
    """
    async for row in list_with_foreign(store, prefix, after):
        if is_key(row.key):
            yield row


async def list_with_foreign(
    store: Store, prefix: str, after: str | None = None
) -> AsyncIterator[Listed]:
    """As `list_all`, with objects of other origin that `delete` takes: a console's folders, say."""
    while True:
        page = await store.list(prefix, start_after=after)
        for row in page.objects:
            if is_removable(row.key):
                yield row
        if page.next is None:
            return
        after = page.next


async def delete_each(store: Store, keys: Sequence[str]) -> dict[str, WorkerError]:
    """Remove these. Returns those that the store refuses to remove, each with its reason."""
    try:
        await store.delete(keys)
    except StorageMisconfigured as error:
        if len(keys) == 1:
            return {keys[0]: error}
        alone = [await delete_each(store, [key]) for key in keys]
        return {key: reason for refused in alone for key, reason in refused.items()}
    return {}


async def delete_all(store: Store, prefix: str) -> Removed:
    """Remove all that begins with `prefix`.

    Raises:
        StorageMisconfigured: some objects cannot be removed; all others are.
    """
    objects = size = 0
    refused: dict[str, WorkerError] = {}
    after: str | None = None
    while True:
        page = await store.list(prefix, start_after=after)
        rows = [row for row in page.objects if is_removable(row.key)]
        new = await delete_each(store, [row.key for row in rows])
        refused |= new
        objects += len(rows)
        size += sum(row.size for row in rows)
        after = page.next
        if after is None or len(new) == MAX_PAGE:  # then it refuses them all
            break
    if refused:
        key, reason = next(iter(refused.items()))
        raise StorageMisconfigured(f"{len(refused)} objects stay, first {key!r}: {reason}")
    return Removed(objects, size)
