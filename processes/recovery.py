"""What a worker owes and should know when it starts."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from processes.index import repair
from processes.lease import AWAY
from processes.lookup import FOLLOW_SECONDS, ProcessLookup
from processes.reading import RecordUnreadable, UnknownProcess, decode_record, read_stored
from processes.record import Record, record_key
from processes.record_cache import Copy
from processes.runs import Runs
from processes.worker import Worker
from storage import ObjectChanged

#: So many of the newest records are read ahead.
RECOVERED_RECORDS = 50


async def recover(worker: Worker, lookup: ProcessLookup, runs: Runs) -> None:
    """Pay what is owed, then read ahead. Runs in the background and delays no request."""
    for copy in await worker.cache.unsent():
        paid = (
            runs.get(copy.record.process_id) is not None
        )  # an attempt that lives here does so itself
        while not paid:
            paid = await _pay(worker, copy)
            if not paid:
                await asyncio.sleep(FOLLOW_SECONDS)
    with suppress(*AWAY):
        await _read_ahead(worker, lookup)


async def _pay(worker: Worker, copy: Copy) -> bool:
    """Write the end that this machine's last worker could not; False if the store is away.

    Had the process moved on since, this would be a lie: the store refuses it then.
    """
    owed = copy.unsent
    try:
        if owed and owed.released:
            await _write_owed(worker, owed, copy.version)
    except AWAY:
        return False
    await worker.cache.drop(copy.record.process_id)
    return True


async def _write_owed(worker: Worker, owed: Record, version: str) -> None:
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
