"""The list of processes, newest first: zero-byte objects whose keys say it all.

`index/{inverted created ms}~{id}~{kind}~{status}`, with a `/` after the first 7 of the 13 digits:
one LIST shows up to 1000 rows and no record is read. A folder has no order, so that all names in
it are read for a page; it keeps the rows of 17 minutes, a *slice*, and a page reads those it needs.

The record is the truth and is written first; a worker that dies in between leaves an old row or two
rows for one process, which `read_rows` merges and the next `show` or `repair` removes.

Rows from before there were slices have no `/`: *flat* ones (decision 016). They are read, and gone
with the next change, but not written. In a slice they come after all others, and so need not lie
beside the other row of their process.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from pydantic import JsonValue

from processes.record import Record, Status
from storage import MAX_PAGE, Page, Store
from stores.prefixes import list_all
from utils import together

PREFIX = "index/"
#: Asked for beside those of a page: while a status changes a process has two. A bucket takes, and
#: a worker, most of a page's time for its rows.
SPARE_ROWS = 50
#: Later than any creation (year 2286), so that newer processes have smaller keys.
_END_OF_TIME_MS = 9_999_999_999_999
#: Digits of a slice's name; the other six count its 1,000,000 ms.
_SLICE = 7
#: Of two rows of one process the one further on is the newer, for a process that is not retried.
_ORDER = [
    Status.QUEUED, Status.RUNNING, Status.INTERRUPTED, Status.FAILED, Status.CANCELLED,
    Status.COMPLETED,
]  # fmt: skip
_KEY = re.compile(
    rf"{PREFIX}([0-9]{{{_SLICE}}})/?([0-9]{{6}})~([^~]+)~([^~]+)~({'|'.join(_ORDER)})"
)


class Row(NamedTuple):
    """What a list shows of a process. `status` is the one last stored."""

    process_id: str
    kind: str
    status: Status
    created_at: datetime
    key: str


def index_key(record: Record, status: Status | None = None) -> str:
    return f"{_beginning(record.created_at)}~{_name(record, status or record.status)}"


def _beginning(created_at: datetime) -> str:
    return _beginnings(created_at)[0]


def _beginnings(created_at: datetime) -> tuple[str, str]:
    """Of a row in its slice, and of a flat one."""
    digits = f"{_END_OF_TIME_MS - int(created_at.timestamp() * 1000):013d}"
    return f"{PREFIX}{digits[:_SLICE]}/{digits[_SLICE:]}", PREFIX + digits


def _name(record: Record, status: Status) -> str:
    return f"{record.process_id}~{record.kind}~{status}"


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
    A process with a flat row beside another is shown once where one LIST has both, else twice.
    """
    asked = MAX_PAGE if status or kind else min(MAX_PAGE, limit + SPARE_ROWS)
    page = await store.list(PREFIX, start_after=PREFIX + cursor if cursor else None, limit=asked)
    # a thousand rows take 10 ms: not on the event loop
    return await asyncio.to_thread(_chosen, page, limit, status, kind)


def rows_shown(rows: list[Row]) -> list[JsonValue]:
    """As callers see them."""
    return [
        {"process_id": row.process_id, "kind": row.kind, "status": row.status.value,
         "created_at": row.created_at.isoformat()}
        for row in rows
    ]  # fmt: skip


def _chosen(
    page: Page, limit: int, status: Status | None, kind: str | None
) -> tuple[list[Row], str | None]:
    """As `read_rows`, of what one LIST gave."""
    found = [row for listed in page.objects if (row := _parse(listed.key))]
    groups = [list(rows) for _, rows in groupby(found, _identity)]
    in_order = sorted(found, key=lambda row: _ORDER.index(row.status))
    latest: dict[tuple[str, datetime], Row] = {_identity(row): row for row in in_order}
    if page.next is not None and len(groups) > 1:
        groups.pop()  # its other rows may be on the next page
    chosen: list[Row] = []
    for taken, rows in enumerate(groups, 1):
        row = latest.pop(_identity(rows[0]), None)  # None: it has come already
        if row and status in (None, row.status) and kind in (None, row.kind):
            chosen.append(row)
        more = taken < len(groups) or page.next is not None
        if len(chosen) == limit or taken == len(groups):
            return chosen, rows[-1].key.removeprefix(PREFIX) if more else None
    return chosen, page.next.removeprefix(PREFIX) if page.next else None


async def rows_before(store: Store, moment: datetime) -> AsyncIterator[list[Row]]:
    """All rows of each process that was created by then, newest first. One LIST for 1000 rows.

    A process with a flat row beside another may come twice.
    """
    rows: list[Row] = []
    async for listed in list_all(store, PREFIX, _beginning(moment)):
        row = _parse(listed.key)
        if row is None or row.created_at > moment:  # the flat ones of the whole slice come by
            continue
        if rows and _identity(rows[0]) != _identity(row):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


async def rows_there(store: Store, record: Record) -> list[str]:
    """The keys of those rows of the process that there are. Two LISTs of a few rows, at once."""
    async with together() as group:
        looks = [
            group.create_task(_rows_at(store, record, beginning))
            for beginning in _beginnings(record.created_at)
        ]
    return [key for look in looks for key in look.result()]


async def _rows_at(store: Store, record: Record, beginning: str) -> list[str]:
    mine = _rows_from(record, beginning)
    folder = beginning[: beginning.rindex("/") + 1]
    after = f"{beginning}~{record.process_id}~"
    page = await store.list(folder, start_after=after, limit=len(mine))
    return [listed.key for listed in page.objects if listed.key in mine]


def rows_of(record: Record) -> list[str]:
    """The keys of all rows that a process may have."""
    return [
        key for beginning in _beginnings(record.created_at) for key in _rows_from(record, beginning)
    ]


def _rows_from(record: Record, beginning: str) -> list[str]:
    return [f"{beginning}~{_name(record, status)}" for status in _ORDER]


def _others(record: Record) -> list[str]:
    right = index_key(record)
    return [key for key in rows_of(record) if key != right]


def _identity(row: Row) -> tuple[str, datetime]:
    return row.process_id, row.created_at


def _parse(key: str) -> Row | None:
    """The row that a key is; None for what somebody else put there."""
    parts = _KEY.fullmatch(key)
    if parts is None:
        return None
    slice_, rest, process_id, kind, status = parts.groups()
    created = datetime.fromtimestamp((_END_OF_TIME_MS - int(slice_ + rest)) / 1000, UTC)
    return Row(process_id, kind, Status(status), created, key)
