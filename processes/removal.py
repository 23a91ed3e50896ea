"""Removing processes that have ended, so that it can be cut short anywhere and repeated.

The record is erased first, by compare-and-swap, so that a delivery which would resume the process
and its removal cannot both succeed. From then on there is no such process, whatever is left of it;
the next removal erases it once more and goes on. The erased record stays for a day or more, and a
row of `ages/deleted/` leads to it: an object that was removed at once could not be told from one
that never was, and a slow worker could remove its successor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from attempts.archive import ARCHIVE, archive_row
from records.index import DELETED, age_key, rows_of
from records.keys import record_key
from records.lease import Leases
from records.reading import decode_record, read_stored
from records.record import Record
from storage import Listed, ObjectChanged, StorageUnavailable, Store
from stores.prefixes import Removed, list_with_foreign
from utils import Stopwatch, WorkerError, side_by_side

#: An erased record stays for so long: then no removal that erased it still removes its files.
ERASED_SECONDS = 86_400.0
#: A removal that erased a record gives up its files after this long.
REMOVAL_SECONDS = ERASED_SECONDS / 2


class ProcessActive(WorkerError):
    """The process has not ended, so that it cannot be deleted."""

    code = "process_active"


class Found(NamedTuple):
    """A record that is to go, erased already or not."""

    record: Record
    version: str


async def delete_process(leases: Leases, process_id: str) -> Removed:
    """Remove everything that a process has stored, and say that it is gone.

    Raises:
        UnknownProcess: there is none.
        ProcessActive: it has not ended, or has begun again just now.
    """
    stored = await read_stored(leases.store, process_id)
    record = decode_record(process_id, stored.data)
    if not record.terminal:
        raise ProcessActive(f"process {process_id} is {record.status}; `cancel` it first")
    removed = await remove_all(leases, [Found(record, stored.version)], leases.clock())
    if process_id not in removed:
        raise ProcessActive(f"process {process_id} has changed just now; look at its status")
    files = removed[process_id]
    objects, size = (0, 0) if record.deleted else (1, len(stored.data))
    return Removed(objects + len(files), size + sum(file.size for file in files))


async def remove_all(
    leases: Leases, found: Sequence[Found], now: datetime
) -> dict[str, list[Listed]]:
    """Erase these records, then remove their files, then the rows that lead to them.

    Returns the files, by process. A process whose record was written meanwhile is left out, and
    nothing of it is touched. The files of the others are safe to remove while the erased records
    stay: a start that uses an id again counts its attempts on, so its files lie elsewhere.

    Raises:
        StorageUnavailable: also if this worker was frozen for long; the next removal goes on.
    """
    store, since_erased = leases.store, Stopwatch()
    gone = [each for each in await side_by_side(_erase(leases, each) for each in found) if each]
    listed = await side_by_side(files_of(store, each.record) for each in gone)
    if since_erased.seconds() > REMOVAL_SECONDS:
        raise StorageUnavailable("a removal was held up for too long; the next one goes on")
    if files := [file.key for files in listed for file in files]:
        await store.delete(files)
    ids = [each.record.process_id for each in gone]
    rows = [age_key(DELETED, process_id, now) for process_id in ids]
    await side_by_side(store.put(row, b"") for row in rows)
    if leads := [lead for each in gone for lead in leads_of(each.record)]:
        await store.delete(leads)
    return dict(zip(ids, listed, strict=True))


async def _erase(leases: Leases, found: Found) -> Found | None:
    """Say in its record that there is no such process any more; None: it was written meanwhile."""
    erased = found.record.erased(leases.new_writer()).written(leases.clock())
    try:
        key = record_key(found.record.process_id)
        await leases.store.replace(key, erased.encode(), found.version)
    except ObjectChanged:
        return None
    await leases.cache.drop(found.record.process_id)
    return found


async def files_of(store: Store, record: Record) -> list[Listed]:
    """What its attempts have stored. One LIST for 1000 files.

    By attempts: an id that is used again counts on, and its files are not those of `record`.
    """
    everything = f"processes/{record.process_id}/attempts/"
    return [
        row
        async for row in list_with_foreign(store, everything)
        if _number(row.key.removeprefix(everything)) <= record.attempt
    ]


def _number(path: str) -> float:
    """Of the attempt that a file is of; infinite for a foreign one."""
    name = path.partition("/")[0]
    return int(name) if re.fullmatch(r"[1-9][0-9]{0,8}", name) else math.inf


def leads_of(record: Record) -> list[str]:
    """The keys of all rows that may lead to a process which was not deleted."""
    archive = [archive_row(record)] if record.kind == ARCHIVE else []
    return [*rows_of(record), *archive]
