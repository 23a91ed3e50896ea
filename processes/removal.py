"""Removing a process that has ended: for everybody at once, and resumable if it is cut short.

The record is erased first, by compare-and-swap, so that a delivery which would resume the process
and its removal cannot both succeed. From then on there is no such process, whatever is left of
it; whoever was cut short removes it again and goes on. The erased record stays for a day or more,
and a row of `ages/erased/` leads there: an object that was removed at once could not be told from
one that never was, and a slow hand could remove its successor.
"""

from __future__ import annotations

from processes.archive import ARCHIVE, archive_age_key
from processes.index import rows_of
from processes.lease import Leases
from processes.reading import decode_record, read_stored
from processes.record import Record, attempt_prefix, record_key
from storage import Listed, ObjectChanged, Store
from stores.prefixes import Removed, list_all
from utils import WorkerError, day_of

#: Below this lie zero-byte rows, a folder a day: what was erased on that day.
ERASED_AGES = "ages/erased/"


class ProcessActive(WorkerError):
    """The process has not ended, so that it cannot be deleted."""

    code = "process_active"


async def delete_process(leases: Leases, process_id: str) -> Removed:
    """Remove everything that a process has stored, and say that it is gone.

    Raises:
        UnknownProcess: there is none.
        ProcessActive: it has not ended, or has begun again just now.
    """
    store = leases.store
    stored = await read_stored(store, process_id)
    record = decode_record(process_id, stored.data)
    if not record.terminal:
        raise ProcessActive(f"process {process_id} is {record.status}; `cancel` it first")
    objects = size = 0
    if not record.deleted:
        try:
            await erase(leases, record, stored.version)
        except ObjectChanged:
            raise ProcessActive(
                f"process {process_id} has changed just now; look at its status"
            ) from None
        objects, size = 1, len(stored.data)
    await leases.cache.drop(process_id)
    files = await files_of(store, record)
    await store.delete([file.key for file in files])
    await store.put(erased_age_key(process_id, day_of(leases.clock())), b"")
    await store.delete(leads_of(record))
    return Removed(objects + len(files), size + sum(file.size for file in files))


async def erase(leases: Leases, record: Record, version: str) -> None:
    """Say in its record that there is no such process any more.

    Raises:
        ObjectChanged: somebody wrote it since it was read.
    """
    erased = record.erased(leases.new_writer()).written(leases.clock())
    await leases.store.replace(record_key(record.process_id), erased.encode(), version)


async def files_of(store: Store, record: Record) -> list[Listed]:
    """What its attempts have stored. One LIST for 1000 files.

    By attempts: an id that is used again counts on, and its files are not those of `record`.
    """
    everything = f"processes/{record.process_id}/attempts/"
    mine = {attempt_prefix(record.process_id, n) for n in range(1, record.attempt + 1)}
    return [
        row
        async for row in list_all(store, everything)
        if f"{everything}{row.key.removeprefix(everything).partition('/')[0]}/" in mine
    ]


def leads_of(record: Record) -> list[str]:
    """The keys of all that may lead to it, but for `erased_age_key`."""
    archive = [archive_age_key(record)] if record.kind == ARCHIVE else []
    return [*rows_of(record), *archive]


def erased_age_key(process_id: str, day: str) -> str:
    return f"{ERASED_AGES}{day}/{process_id}"
