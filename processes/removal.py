"""Deleting a process that has ended: for everybody at once, and resumable if it is cut short.

The record is marked first, by compare-and-swap, so that a delivery which would resume the process
and its deletion cannot both succeed. From then on there is no such process, whatever is left of
it. The record itself goes last: whoever was cut short deletes again and goes on.
"""

from __future__ import annotations

from processes.index import rows_of
from processes.reading import decode_record, read_stored
from processes.record import Record, Writer, process_prefix, record_key
from processes.worker import Worker
from storage import ObjectChanged, Removed, delete_all
from utils import WorkerError, new_nonce


class ProcessActive(WorkerError):
    """The process has not ended, so that it cannot be deleted."""

    code = "process_active"


async def delete_process(worker: Worker, process_id: str) -> Removed:
    """Remove a process with everything that it stored.

    Raises:
        UnknownProcess: there is none.
        ProcessActive: it has not ended, or has begun again just now.
    """
    store = worker.store
    stored = await read_stored(store, process_id)
    record = decode_record(process_id, stored.data)
    if not record.terminal:
        raise ProcessActive(f"process {process_id} is {record.status}; `cancel` it first")
    if not record.deleted:
        await _mark(worker, record, stored.version)
    await worker.cache.drop(process_id)
    removed = await delete_all(store, process_prefix(process_id), but=record_key(process_id))
    await store.delete(rows_of(record))
    await store.delete([record_key(process_id)])
    return Removed(removed.objects + 1, removed.bytes + len(stored.data))


async def _mark(worker: Worker, record: Record, version: str) -> None:
    me = Writer(worker_id=worker.settings.worker_id, nonce=new_nonce())
    marked = record.settled_by(me).with_deletion().written(worker.clock())
    try:
        await worker.store.replace(record_key(record.process_id), marked.encode(), version)
    except ObjectChanged:
        raise ProcessActive(
            f"process {record.process_id} has changed just now; look at its status"
        ) from None
