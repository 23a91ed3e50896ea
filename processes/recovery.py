"""The work of a worker's start: send what dead workers could not, and read recent records."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

from processes.lookup import ProcessLookup
from records.cache import JournalEntry, Unsent
from records.index import repair
from records.keys import record_key
from records.lease import Leases, until_answered
from records.proof import proves
from records.reading import RecordUnreadable, UnknownProcess, decode_record, read_stored
from storage import ObjectChanged, StorageFailure, StorageMisconfigured, Store

log = logging.getLogger(__name__)

#: So many of the newest records are read ahead.
RECOVERED_RECORDS = 50


async def recover(leases: Leases, lookup: ProcessLookup) -> None:
    """Send what dead workers of this machine could not, then read ahead.

    Runs in the background and delays no request.
    """
    async with leases.cache.left_behind() as entries:
        for entry in entries:
            await _settle(leases, entry)
    with suppress(StorageFailure):
        await _read_ahead(leases.store, lookup)


async def _settle(leases: Leases, entry: JournalEntry) -> None:
    """Send one write; what the store refuses stays in its journal, for the next worker."""
    try:
        await until_answered(partial(_send, leases, entry.unsent))
    except StorageMisconfigured as error:
        log.warning("the end of process %s stays unsent: %s", entry.unsent.record.process_id, error)
    else:
        await leases.cache.settled(entry)


async def _send(leases: Leases, unsent: Unsent) -> None:
    """Write an end that a dead worker could not, unless the process has moved on since."""
    owed = unsent.record
    if not owed.released:
        return
    store, process_id = leases.store, owed.process_id
    with suppress(ObjectChanged, UnknownProcess, RecordUnreadable):
        stored = await read_stored(store, process_id)
        found = decode_record(process_id, stored.data)
        if found.writer != owed.writer or found.released:
            return
        if not proves(unsent.proof, found.writer.nonce):
            log.warning("the end of process %s is not its worker's; it is not sent", process_id)
            return
        # The dead worker's last write may have arrived without an answer to it.
        owed = owed.written(owed.updated_at, revision=found.revision + 1)
        await store.replace(record_key(process_id), owed.encode(), stored.version)
        leases.count_end(owed)
        await repair(store, owed)


async def _read_ahead(store: Store, lookup: ProcessLookup) -> None:
    """The newest records, and the rows that a worker which died left behind them."""
    rows, _ = await lookup.list(limit=RECOVERED_RECORDS, cursor=None, status=None, kind=None)
    for row in rows:
        try:
            record = (await lookup.get(row.process_id)).record
        except UnknownProcess:
            # Records come before rows: it was deleted, while somebody else repaired its row.
            await store.delete([row.key])
        except RecordUnreadable:
            continue
        else:
            if record.released and record.status is not row.status:
                await repair(store, record)
