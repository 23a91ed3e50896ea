"""Writing the end of a process that no worker holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from records.index import repair
from records.lease import Leases
from records.record import Record, clock_of
from records.view import Snapshot
from storage import ObjectChanged, StorageFailure, Store, Stored


async def settle_abandoned(
    leases: Leases,
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
    clock = clock_of(record, stored.age_seconds, leases.clock)
    ended = end(record.settled_by(leases.new_writer()), clock())
    try:
        lease = await leases.claim(ended, stored.version, clock)
    except ObjectChanged:
        return None
    leases.count_end(lease.record)
    if cancelled_seconds_ago is not None:
        leases.meter.cancelled(cancelled_seconds_ago + time.monotonic() - began)
    await mend_index(leases.store, lease.record)
    return Snapshot(lease.record, "storage", 0.0)


async def mend_index(store: Store, record: Record) -> None:
    """Renew the row of a process: a worker that died may have left it behind its record."""
    with suppress(StorageFailure):
        await repair(store, record)
