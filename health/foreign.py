"""Finds objects below `inputs/` that no path leads to: a console's folders, or odd names."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from health.checks import Finding
from inputs.folder_files import PREFIX, is_foreign
from storage import Store
from utils import WorkerError

#: Pages that a look lists, and a deep one.
PAGES: Final = 1
DEEP_PAGES: Final = 20
#: Keys that are named.
MAX_NAMED: Final = 10


async def foreign_objects(store: Store, *, deep: bool) -> tuple[str, ...]:
    """The keys of the first of them; none while the store is away. At most so many LISTs."""
    found: list[str] = []
    after: str | None = None
    with suppress(WorkerError):
        for _ in range(DEEP_PAGES if deep else PAGES):
            page = await store.list(PREFIX, start_after=after)
            found += [row.key for row in page.objects if is_foreign(row.key)]
            after = page.next
            if after is None or len(found) > MAX_NAMED:
                break
    return tuple(found[:MAX_NAMED])


def judge_foreign(keys: tuple[str, ...]) -> tuple[Finding, ...]:
    """They harm nothing, so they are named and no more. Pure."""
    if not keys:
        return ()
    message = f"no path leads to {', '.join(map(repr, keys))}: lists and jobs pass over them"
    return (Finding("inputs", "ok", message, "`delete` of a folder removes those in it, too"),)
