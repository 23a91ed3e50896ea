"""All processes in turn, some of them a run: what no row leads to, and rows that are wrong.

It finds what a worker that died between two writes has left: a record without its row, or with an
old one; files and notes without a record, which came after it was removed; and what ended long ago
although no row says so.

Nobody knows how many there are, and to count them would cost as much as to look at them. So a run
looks at a share of what this round has seen so far: few are seen at a constant cost, and ten
million within a month.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from processes.index import index_key, repair, rows_of, rows_there
from processes.reading import (
    RecordUnreadable,
    UnknownProcess,
    decode_record,
    read_record,
    read_stored,
)
from processes.record import Record
from processes.removal import files_of
from storage import MAX_PAGE
from stores.prefixes import list_all
from upkeep.clean_run import AT_ONCE, DAY, CleanRun, side_by_side
from upkeep.expired_processes import ERASED_SECONDS, Candidate, bury, is_expired, remove_expired
from upkeep.store_lock import Stopwatch

#: Processes that one run looks at, at least: a GET and at most one look at its rows each.
SWEPT = 100
#: A run looks at this part of what its round has seen: in so many runs that grows e-fold.
PART = 72
#: And at no more: 200,000 processes take 13 minutes at 30 ms a request, and what expires waits.
MOST_SWEPT = 200_000
#: A count of more digits is nobody's.
MAX_DIGITS = 12
#: What has no record is removed when it is so old: it may be that of a process that just begins.
ORPHAN_SECONDS = DAY
#: Times that the rows of one process are written: it may be resumed, and end, while they are.
MENDS = 4


def pace(seen: int, least: int = SWEPT) -> int:
    """How many a run looks at whose round has seen so many."""
    return min(max(least, seen // PART), MOST_SWEPT)


async def sweep_processes(run: CleanRun, cursors: dict[str, str]) -> None:
    """Look at the next processes."""
    await in_turn(run, cursors, "processes", partial(_look_at, run), least=SWEPT)


async def in_turn(
    run: CleanRun,
    cursors: dict[str, str],
    what: str,
    look_at: Callable[[str], Coroutine[Any, Any, None]],
    *,
    least: int,
) -> None:
    """Look at the next of the folders below `what/`, up to where the names end.

    `cursors` has where to go on, and beside it how many this round has seen. Both are moved with
    every few, and the lock writes them down with its heartbeats and when it is released: who is
    killed has lost what came since the last heartbeat.
    """
    count = f"{what} seen"
    seen = _seen(cursors, what, count)
    left = pace(seen, least)
    while left > 0:
        page = await run.store.list_folders(
            f"{what}/", start_after=cursors.get(what) or None, limit=min(left, MAX_PAGE)
        )
        for start in range(0, len(page.names), AT_ONCE):
            await run.still_mine()
            names = page.names[start : start + AT_ONCE]
            await side_by_side(look_at(name) for name in names)
            seen += len(names)
            cursors.update({what: names[-1], count: str(seen)})
        if page.next is None:
            cursors.update({what: "", count: "0"})
            return
        left -= len(page.names)


def _seen(cursors: dict[str, str], what: str, count: str) -> int:
    """0 where a round begins, whatever the count says: an older version leaves it as it was."""
    number = cursors.get(count, "")
    known = cursors.get(what) and number.isdecimal() and len(number) <= MAX_DIGITS
    return int(number) if known else 0


async def _look_at(run: CleanRun, process_id: str) -> None:
    try:
        stored = await read_stored(run.store, process_id)
        record = decode_record(process_id, stored.data)
    except UnknownProcess:
        await _remove_orphans(run, process_id)
        return
    except RecordUnreadable:
        return
    if record.deleted:
        if stored.older_than(ERASED_SECONDS):
            await run.delete([file.key for file in await files_of(run.store, record)])
            await bury(run, [process_id])
    elif is_expired(record, stored.age_seconds, run.now, run.settings):
        await remove_expired(run, [Candidate(process_id, [])])
    elif record.released or stored.older_than(run.settings.lease_seconds):
        await _mend_rows(run, record)


async def _mend_rows(run: CleanRun, record: Record) -> None:
    """Of a process that nobody holds, as far as one can tell: a row that says what it was last."""
    there = await rows_there(run.store, record)
    right = there == [index_key(record)] if record.released else bool(there)
    if right:
        return
    if not run.dry:
        await _mend(run, record)
    run.report.add("rows mended", record.process_id)


async def _mend(run: CleanRun, record: Record) -> None:
    """Until a record that is read after its row was written says the same: a new owner shows what
    it does once, and we may have written over it."""
    for _ in range(MENDS):
        await run.still_mine()
        await repair(run.store, record)
        try:
            now = await read_record(run.store, record.process_id)
        except UnknownProcess:
            await run.delete(rows_of(record))
            return
        except RecordUnreadable:  # a newer worker has it by now
            return
        if index_key(now) == index_key(record):
            return
        # Its id may have been used again since: then rows of the former one are nobody's.
        await run.delete(sorted({*rows_of(record)} - {*rows_of(now)}))
        record = now


async def _remove_orphans(run: CleanRun, process_id: str) -> None:
    seen = Stopwatch()
    rows = [row async for row in list_all(run.store, f"processes/{process_id}/")]
    old = [row for row in rows if run.now - row.modified > ORPHAN_SECONDS]
    if old and await run.delete_if_just_seen([row.key for row in old], seen):
        size = sum(row.size for row in old)
        run.report.add("orphans", process_id, objects=len(old), size=size)
