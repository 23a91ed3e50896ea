"""Writing the end of a process that no worker holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from processes.index import repair
from processes.lease import AWAY, Lease
from processes.record import Record, Snapshot, Writer, clock_of
from processes.worker import Worker
from storage import ObjectChanged, Stored
from utils import new_nonce


async def settle_abandoned(
    worker: Worker,
    record: Record,
    stored: Stored,
    end: Callable[[Record, datetime], Record],
    *,
    cancelled_seconds_ago: float | None = None,
) -> Snapshot | None:
    """Write the end of a process that no worker holds; None if one does after all.

    `cancelled_seconds_ago`: when a caller asked for it, if it is that and the time is known.
    """
    began = time.monotonic()
    me = Writer(worker_id=worker.settings.worker_id, nonce=new_nonce())
    clock = clock_of(record, stored.age_seconds, worker.clock)
    ended = end(record.settled_by(me), clock())
    try:
        lease = await Lease.claim(worker, ended, stored.version, clock)
    except ObjectChanged:
        return None
    worker.count_end(lease.record)
    if cancelled_seconds_ago is not None:
        worker.meter.cancelled(cancelled_seconds_ago + time.monotonic() - began)
    await mend_index(worker, lease.record)
    return Snapshot(lease.record, "storage", 0.0)


async def mend_index(worker: Worker, record: Record) -> None:
    """A worker that died may have left the row of a process behind its record."""
    with suppress(*AWAY):
        await repair(worker.store, record)
