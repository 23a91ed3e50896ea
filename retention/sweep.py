"""All processes in turn, some of them a run: what no row leads to, and rows that are wrong.

It finds what a worker that died between two writes has left: a record without its row, or with an
old one; files and notes without a record, which came after it was removed; and what ended long ago
although no row says so.

How many there are is unknown, and to count them would cost as much as to look at them. So a run
looks at a share of what this round has seen so far: few are seen at a constant cost, and ten
million within a month.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from inputs.sources import NAME
from processes.removal import ERASED_SECONDS, Found
from records.index import index_key, rows_of, rows_there
from records.reading import (
    RecordUnreadable,
    UnknownProcess,
    decode_record,
    read_record,
    read_stored,
)
from records.record import Record
from retention.clean_run import AT_ONCE, DAY, MOST, CleanRun, each_apart
from retention.expired_processes import is_expired, remove
from retention.last_clean import SweepPlace
from storage import MAX_PAGE
from stores.prefixes import list_with_foreign
from utils import Stopwatch
from worker.settings import Settings

T = TypeVar("T")

#: Processes that one run looks at, at least: a GET and at most one look at its rows each.
SWEPT = 100
#: A run looks at this part of what its round has seen: in so many runs that grows e-fold.
PART = 72
#: What has no record is removed when it is so old: it may be that of a process that just begins.
ORPHAN_SECONDS = DAY
#: The row of an erased record has led to it by then.
ERASED_LONG_SECONDS = 2 * ERASED_SECONDS


class Names(NamedTuple, Generic[T]):
    """A page of what a sweep goes through, by name and in order."""

    items: Mapping[str, T]
    more: bool


def pace(seen: int, least: int = SWEPT) -> int:
    """How many a run looks at whose round has seen so many."""
    return min(max(least, seen // PART), MOST)


async def sweep_processes(run: CleanRun) -> None:
    """Look at the next processes."""
    await in_turn(run, "processes", partial(_names, run), partial(_look_at, run), least=SWEPT)


async def _names(run: CleanRun, after: str | None, limit: int) -> Names[str]:
    page = await run.store.list_folders("processes/", start_after=after, limit=limit)
    return Names({name: name for name in page.names}, page.next is not None)


async def in_turn(
    run: CleanRun,
    sweep: str,
    page_after: Callable[[str | None, int], Awaitable[Names[T]]],
    look_at: Callable[[T], Coroutine[Any, Any, None]],
    *,
    least: int,
) -> None:
    """Look at the next items, up to where the names end. Foreign names are skipped.

    How far it has come is written down after each page: a worker that is killed loses no more.
    """
    place = run.last.place(sweep)
    left = pace(place.seen, least)
    while left > 0:
        page = await page_after(place.after or None, min(left, MAX_PAGE))
        items = [item for name, item in page.items.items() if re.fullmatch(NAME, name)]
        for start in range(0, len(items), AT_ONCE):
            await each_apart(look_at(item) for item in items[start : start + AT_ONCE])
        after = [*page.items][-1] if page.items else ""
        more = page.more and after != ""
        seen = place.seen + len(page.items)
        place = SweepPlace(after=after, seen=seen) if more else SweepPlace()
        if not await run.came_to(sweep, place) or not more:
            return
        left -= len(page.items)


async def _look_at(run: CleanRun, process_id: str) -> None:
    try:
        stored = await read_stored(run.store, process_id)
        record = decode_record(process_id, stored.data)
    except UnknownProcess:
        await _remove_orphans(run, process_id)
        return
    except RecordUnreadable:
        return
    age = stored.age_seconds
    if record.deleted:
        goes = age is not None and age > ERASED_LONG_SECONDS
    else:
        goes = is_expired(record, age, run.now, run.settings)
    if goes:
        if process_id not in run.gone:
            await remove(run, [Found(record, stored.version)])
    elif not record.deleted and (record.released or _is_silent(age, run.settings)):
        await _mend_rows(run, record)


def _is_silent(age_seconds: float | None, settings: Settings) -> bool:
    return age_seconds is not None and age_seconds > settings.lease_seconds


async def _mend_rows(run: CleanRun, record: Record) -> None:
    """Of a process that no worker holds, as far as one can tell: leave one row, the right one."""
    there, right = await rows_there(run.store, record), index_key(record)
    if there == [right] or (there and not record.released):
        return
    run.report.add("rows mended", record.process_id)
    if run.dry:
        return
    await run.store.put(right, b"")
    try:
        now = await read_record(run.store, record.process_id)
        wrong = set(rows_of(record)) - {right} if index_key(now) == right else {right}
    except (UnknownProcess, RecordUnreadable):
        wrong = {right}
    await run.delete(sorted(wrong))  # of a process that went on meanwhile, its owner shows the row


async def _remove_orphans(run: CleanRun, process_id: str) -> None:
    seen = Stopwatch()
    rows = [row async for row in list_with_foreign(run.store, f"processes/{process_id}/")]
    old = [row for row in rows if run.now - row.modified > ORPHAN_SECONDS]
    if old and await run.delete_if_just_seen([row.key for row in old], seen):
        size = sum(row.size for row in old)
        run.report.add("orphans", process_id, objects=len(old), size=size)
