"""The list of processes, newest first: zero-byte objects whose keys say it all.

`index/{inverted created ms}~{id}~{kind}~{status}`: one LIST shows up to 1000 rows and no record is
read. The record is the truth and is written first; a worker that dies in between leaves an old row
or two rows for one process, which `read_rows` merges and the next `show` or `repair` removes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from processes.record import Record, Status
from storage import MAX_PAGE, Store
from stores.prefixes import list_all

PREFIX = "index/"
#: Asked for beside those of a page: while a status changes a process has two. A bucket takes, and
#: a worker, most of a page's time for its rows.
SPARE_ROWS = 50
#: Later than any creation (year 2286), so that newer processes have smaller keys.
_END_OF_TIME_MS = 9_999_999_999_999
#: Of two rows of one process the one further on is the newer, for a process that is not retried.
_ORDER = [
    Status.QUEUED, Status.RUNNING, Status.INTERRUPTED, Status.FAILED, Status.CANCELLED,
    Status.COMPLETED,
]  # fmt: skip


class Row(NamedTuple):
    """What a list shows of a process. `status` is the one last stored."""

    process_id: str
    kind: str
    status: Status
    created_at: datetime
    key: str


def index_key(record: Record, status: Status | None = None) -> str:
    name = f"{record.process_id}~{record.kind}~{status or record.status}"
    return f"{_beginning(record.created_at)}~{name}"


def _beginning(created_at: datetime) -> str:
    return f"{PREFIX}{_END_OF_TIME_MS - int(created_at.timestamp() * 1000):013d}"


class IndexEntry:
    """The row of one process, as far as this worker has shown it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shown: str | None = None
        #: Rows that may be there: written, begun to be written, or not surely removed.
        self._maybe_there: set[str] = set()

    async def show(self, record: Record) -> None:
        """Make the row say what the record says. No request if it does already."""
        key = index_key(record)
        if key == self._shown:
            return
        if self._shown is None and record.attempt > 1:  # nothing is known of earlier attempts'
            self._maybe_there.update(_others(record))
        self._maybe_there.add(key)
        await self._store.put(key, b"")
        if old := sorted(self._maybe_there - {key}):
            await self._store.delete(old)
            self._maybe_there = {key}
        self._shown = key


async def repair(store: Store, record: Record) -> None:
    """Leave exactly the right row, whatever is there."""
    await store.put(index_key(record), b"")
    await store.delete(_others(record))


async def read_rows(
    store: Store, *, limit: int, cursor: str | None, status: Status | None, kind: str | None
) -> tuple[list[Row], str | None]:
    """Up to `limit` rows after `cursor`, newest first, and the cursor for more (None: no more).

    One LIST. With a filter a page may be short, or even empty, and still have a cursor; without
    one it is short where `SPARE_ROWS` rows or more are second ones, and by one at the largest
    `limit`: whether a second row of the last process follows would be known of the next page only.
    """
    asked = MAX_PAGE if status or kind else min(MAX_PAGE, limit + SPARE_ROWS)
    page = await store.list(PREFIX, start_after=PREFIX + cursor if cursor else None, limit=asked)
    keys = [listed.key for listed in page.objects]
    groups = [list(rows) for _, rows in groupby(filter(None, map(_parse, keys)), _identity)]
    if page.next is not None and len(groups) > 1:
        groups.pop()  # its other rows may be on the next page
    chosen: list[Row] = []
    for taken, rows in enumerate(groups, 1):
        row = max(rows, key=lambda row: _ORDER.index(row.status))
        if (status in (None, row.status)) and (kind in (None, row.kind)):
            chosen.append(row)
        more = taken < len(groups) or page.next is not None
        if len(chosen) == limit or taken == len(groups):
            return chosen, rows[-1].key.removeprefix(PREFIX) if more else None
    return chosen, page.next.removeprefix(PREFIX) if page.next else None


async def rows_before(store: Store, moment: datetime) -> AsyncIterator[list[Row]]:
    """All rows of each process that was created by then, newest first. One LIST for 1000 rows."""
    rows: list[Row] = []
    async for listed in list_all(store, PREFIX, _beginning(moment)):
        row = _parse(listed.key)
        if row is None:
            continue
        if rows and _identity(rows[0]) != _identity(row):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


async def rows_there(store: Store, record: Record) -> list[str]:
    """The keys of those rows of the process that there are. One LIST of a few rows."""
    mine = rows_of(record)
    beginning = f"{_beginning(record.created_at)}~{record.process_id}~"
    page = await store.list(PREFIX, start_after=beginning, limit=len(mine))
    return [listed.key for listed in page.objects if listed.key in mine]


def rows_of(record: Record) -> list[str]:
    """The keys of all rows that a process may have."""
    return [index_key(record, status) for status in _ORDER]


def _others(record: Record) -> list[str]:
    return [index_key(record, status) for status in _ORDER if status is not record.status]


def _identity(row: Row) -> tuple[str, datetime]:
    return row.process_id, row.created_at


def _parse(key: str) -> Row | None:
    """The row that a key is; None for what somebody else put there."""
    parts = key.removeprefix(PREFIX).split("~")
    if len(parts) != 4 or not parts[0].isdecimal() or parts[3] not in _ORDER:
        return None
    created = datetime.fromtimestamp((_END_OF_TIME_MS - int(parts[0])) / 1000, UTC)
    return Row(parts[1], parts[2], Status(parts[3]), created, key)
