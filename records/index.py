"""The list of processes, newest first: zero-byte objects whose keys say it all.

`index/{inverted created ms}~{id}~{kind}~{status}`, with a `/` after the first 7 of the 13 digits:
one LIST shows up to 1000 rows and no record is read. A folder has no order, so that all names in
it are read for a page; it keeps the rows of 17 minutes, a *slice*, and a page reads those it needs.

The record is the truth and is written first; a worker that dies in between leaves an old row or two
rows for one process, which `read_rows` merges and the next `show` or `repair` removes.

Retention finds a process by the same row: what is older than a moment is the end of the list. An
archive and a deleted process expire earlier, so each has a row of its own under `ages/`, which has
the same beginning as a row of the index (decision 019).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from pydantic import JsonValue

from inputs.sources import NAME
from records.record import Record, Status
from storage import MAX_PAGE, Page, Store
from stores.prefixes import list_all
from utils import timestamp

PREFIX = "index/"
#: Rows of archives, by their creation, and of deleted processes, by their deletion.
ARCHIVES, DELETED = "ages/archives/", "ages/deleted/"
#: Asked for beside those of a page: while a status changes a process has two. A bucket takes, and
#: a worker, most of a page's time for its rows.
SPARE_ROWS = 50
#: Later than any creation (year 2286), so that newer processes have smaller keys.
_END_OF_TIME_MS = 9_999_999_999_999
#: Digits of a slice's name; the other six count its 1,000,000 ms.
_SLICE = 7
#: Of two rows of one process the one further on is the newer, for a process that is not retried.
_ORDER = [
    Status.QUEUED,
    Status.RUNNING,
    Status.INTERRUPTED,
    Status.FAILED,
    Status.CANCELLED,
    Status.COMPLETED,
]
_PLACE = rf"([0-9]{{{_SLICE}}})/([0-9]{{6}})~({NAME})"
_KEY = re.compile(rf"{PREFIX}{_PLACE}~([^~]+)~({'|'.join(_ORDER)})")
_AGE_KEY = re.compile(rf"ages/(?:archives|deleted)/{_PLACE}")


class Row(NamedTuple):
    """What a list shows of a process. `status` is the one last stored."""

    process_id: str
    kind: str
    status: Status
    created_at: datetime
    key: str


class Lead(NamedTuple):
    """A row by which retention finds a process. `kind` is None where the row does not say it."""

    process_id: str
    kind: str | None
    at: datetime
    key: str


def index_key(record: Record, status: Status | None = None) -> str:
    return f"{_beginning(record)}~{record.kind}~{status or record.status}"


def age_key(prefix: str, process_id: str, moment: datetime) -> str:
    """The key of a process's row under `ARCHIVES` or `DELETED`."""
    return f"{prefix}{_place(moment)}~{process_id}"


def _beginning(record: Record) -> str:
    return age_key(PREFIX, record.process_id, record.created_at)


def _place(moment: datetime) -> str:
    """Sorts later moments first."""
    digits = f"{_END_OF_TIME_MS - int(moment.timestamp() * 1000):013d}"
    return f"{digits[:_SLICE]}/{digits[_SLICE:]}"


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
    # a thousand rows take 10 ms: not on the event loop
    return await asyncio.to_thread(_chosen, page, limit, status, kind)


def rows_shown(rows: list[Row]) -> list[JsonValue]:
    """As callers see them."""
    return [
        {
            "process_id": row.process_id,
            "kind": row.kind,
            "status": row.status.value,
            "created_at": timestamp(row.created_at),
        }
        for row in rows
    ]


def _chosen(
    page: Page, limit: int, status: Status | None, kind: str | None
) -> tuple[list[Row], str | None]:
    """As `read_rows`, of what one LIST gave."""
    found = [row for listed in page.objects if (row := _parse(listed.key))]
    groups = [list(rows) for _, rows in groupby(found, _identity)]
    if page.next is not None and len(groups) > 1:
        groups.pop()  # its other rows may be on the next page
    chosen: list[Row] = []
    for taken, rows in enumerate(groups, 1):
        row = max(rows, key=lambda row: _ORDER.index(row.status))
        if status in (None, row.status) and kind in (None, row.kind):
            chosen.append(row)
        more = taken < len(groups) or page.next is not None
        if len(chosen) == limit or taken == len(groups):
            return chosen, rows[-1].key.removeprefix(PREFIX) if more else None
    return chosen, page.next.removeprefix(PREFIX) if page.next else None


async def leads_before(store: Store, prefix: str, moment: datetime) -> AsyncIterator[Lead]:
    """The rows under `prefix` that are older than `moment`, newest first. One LIST for 1000.

    What is under `prefix` and no row is skipped.
    """
    async for listed in list_all(store, prefix, prefix + _place(moment)):
        if lead := _lead(listed.key):
            yield lead


async def rows_there(store: Store, record: Record) -> list[str]:
    """The keys of those rows of the process that there are. One LIST of a few rows."""
    mine, beginning = rows_of(record), _beginning(record)
    folder = beginning[: beginning.rindex("/") + 1]
    page = await store.list(folder, start_after=f"{beginning}~", limit=len(mine))
    return [listed.key for listed in page.objects if listed.key in mine]


def rows_of(record: Record) -> list[str]:
    """The keys of all rows that a process may have."""
    return [index_key(record, status) for status in _ORDER]


def _others(record: Record) -> list[str]:
    right = index_key(record)
    return [key for key in rows_of(record) if key != right]


def _identity(row: Row) -> tuple[str, datetime]:
    return row.process_id, row.created_at


def _parse(key: str) -> Row | None:
    """The row that a key is; None for a foreign object."""
    parts = _KEY.fullmatch(key)
    if parts is None:
        return None
    slice_, rest, process_id, kind, status = parts.groups()
    return Row(process_id, kind, Status(status), _moment(slice_ + rest), key)


def _lead(key: str) -> Lead | None:
    if row := _parse(key):
        return Lead(row.process_id, row.kind, row.created_at, key)
    if parts := _AGE_KEY.fullmatch(key):
        slice_, rest, process_id = parts.groups()
        return Lead(process_id, None, _moment(slice_ + rest), key)
    return None


def _moment(digits: str) -> datetime:
    return datetime.fromtimestamp((_END_OF_TIME_MS - int(digits)) / 1000, UTC)
