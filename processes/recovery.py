"""The work of a worker's start: send what dead workers could not, and read recent records."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from processes.index import repair
from processes.lease import AWAY, until_answered
from processes.lookup import ProcessLookup
from processes.reading import RecordUnreadable, UnknownProcess, decode_record, read_stored
from processes.record import record_key
from processes.record_cache import Unsent
from processes.worker import Worker
from storage import ObjectChanged

#: So many of the newest records are read ahead.
RECOVERED_RECORDS = 50


async def recover(worker: Worker, lookup: ProcessLookup) -> None:
    """Send what dead workers of this machine could not, then read ahead.

    Runs in the background and delays no request.
    """
    async with worker.cache.left_behind() as entries:
        for entry in entries:
            await until_answered(partial(_send, worker, entry.unsent), AWAY)
            await worker.cache.settled(entry)
    with suppress(*AWAY):
        await _read_ahead(worker, lookup)


async def _send(worker: Worker, unsent: Unsent) -> None:
    """Write an end that a dead worker could not.

    Had the process moved on since, this would be a lie: the store refuses it then.
    """
    owed, version = unsent.record, unsent.version
    if not owed.released:
        return
    key = record_key(owed.process_id)
    with suppress(ObjectChanged, UnknownProcess, RecordUnreadable):
        try:
            await worker.store.replace(key, owed.encode(), version)
        except ObjectChanged:
            stored = await read_stored(worker.store, owed.process_id)
            found = decode_record(owed.process_id, stored.data)
            if found.writer != owed.writer or found.released:
                return
            # That worker's own last write, whose answer it never got.
            owed = owed.written(owed.updated_at, revision=found.revision + 1)
            await worker.store.replace(key, owed.encode(), stored.version)
        worker.count_end(owed)
        await repair(worker.store, owed)


async def _read_ahead(worker: Worker, lookup: ProcessLookup) -> None:
    """The newest records, and the rows that a worker which died left behind them."""
    rows, _ = await lookup.list(limit=RECOVERED_RECORDS, cursor=None, status=None, kind=None)
    for row in rows:
        try:
            record = (await lookup.get(row.process_id)).record
        except UnknownProcess:
            # Records come before rows: it was deleted, while somebody else repaired its row.
            await worker.store.delete([row.key])
        except RecordUnreadable:
            continue
        else:
            if record.released and record.status is not row.status:
                await repair(worker.store, record)
