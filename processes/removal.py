"""Deleting a process that has ended: for everybody at once, and resumable if it is cut short.

The record is erased first, by compare-and-swap, so that a delivery which would resume the process
and its deletion cannot both succeed. From then on there is no such process, whatever is left of
it; whoever was cut short deletes again and goes on. The erased record stays: an object that was
removed could not be told from one that never was, and a slow hand could remove its successor.
"""

from __future__ import annotations

from processes.index import rows_of
from processes.reading import decode_record, read_stored
from processes.record import Record, Writer, attempt_prefix, record_key
from processes.worker import Worker
from storage import ObjectChanged
from stores.prefixes import Removed, delete_all
from utils import WorkerError, new_nonce


class ProcessActive(WorkerError):
    """The process has not ended, so that it cannot be deleted."""

    code = "process_active"


async def delete_process(worker: Worker, process_id: str) -> Removed:
    """Remove everything that a process has stored, and say that it is gone.

    Raises:
        UnknownProcess: there is none.
        ProcessActive: it has not ended, or has begun again just now.
    """
    stored = await read_stored(worker.store, process_id)
    record = decode_record(process_id, stored.data)
    if not record.terminal:
        raise ProcessActive(f"process {process_id} is {record.status}; `cancel` it first")
    objects = size = 0
    if not record.deleted:
        await _erase(worker, record, stored.version)
        objects, size = 1, len(stored.data)
    await worker.cache.drop(process_id)
    # By attempts, not all at once: an id that is used again counts on, and its files are not ours.
    for attempt in range(1, record.attempt + 1):
        removed = await delete_all(worker.store, attempt_prefix(process_id, attempt))
        objects, size = objects + removed.objects, size + removed.bytes
    await worker.store.delete(rows_of(record))
    return Removed(objects, size)


async def _erase(worker: Worker, record: Record, version: str) -> None:
    me = Writer(worker_id=worker.settings.worker_id, nonce=new_nonce())
    erased = record.erased(me).written(worker.clock())
    try:
        await worker.store.replace(record_key(record.process_id), erased.encode(), version)
    except ObjectChanged:
        raise ProcessActive(
            f"process {record.process_id} has changed just now; look at its status"
        ) from None
