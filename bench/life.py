"""What the parts of a worker's day cost a bucket: requests by operation, measured one by one.

At Ceph RGW: moto compares and swaps in two steps, which the probe may find out. What follows a
clock (heartbeats, the look for a cancel note, presence) is measured for one turn, and all else
without any.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from bench.asked import requests_of
from records.notes import read_note
from retention.last_clean import LastClean
from storage import Store
from tests.aged import ended, seed
from tests.kit import Caller
from tests.servers import S3Server, open_place
from worker.meter import Meter

Requests = Counter[str]
#: No clock strikes within a measurement.
SLOW = {
    "heartbeat_seconds": 60,
    "lease_seconds": 600,
    "progress_write_seconds": 60,
    "cancel_poll_seconds": 60,
}
POLLS = 3
#: More than a worker reads ahead at its start.
THERE = 60


class Costs(NamedTuple):
    """Requests by operation."""

    #: From the arrival of a start to its reply: two artifacts, no log.
    process: Requests
    heartbeat: Requests
    #: The owner's look for a cancel note.
    look: Requests
    #: Of a worker that does not own it, while it runs.
    status: Requests
    #: The same when it has ended, and links to its files: together.
    end_and_links: Requests
    #: What a bucket can do, found out once in a worker's life.
    probe: Requests
    #: The rest of a worker's start, with one page of workers to list.
    start_up: Requests
    #: A worker's figures, once a turn.
    presence: Requests
    #: Whether it is time to clean.
    cleaner_look: Requests


async def measure(server: S3Server, scratch: Path) -> Costs:
    place = server.place()
    mine, theirs = Meter(), Meter()
    store, far = open_place(place, mine), open_place(place, theirs)
    owner = Caller(store, scratch / "owner", background=False, **SLOW)
    other = Caller(far, scratch / "other", background=False, **SLOW)
    probe = await _cost(mine, store.capabilities)
    await far.capabilities()
    for number in range(THERE):
        await seed(store, ended(f"old-{number}", 1))
    start_up = await _cost(mine, lambda: _start_up(owner, store))
    held = asyncio.create_task(owner.start("p", seconds=3600, steps=1))
    await owner.seen("p", "running")
    await _until_still(mine)
    look = await _cost(mine, lambda: read_note(store, "p"))
    status = await _cost(theirs, lambda: other("process_status", process_id="p"))
    run = owner.manager.runs._runs["p"]
    heartbeat = await _cost(mine, run.lease._write)
    await owner("cancel", process_id="p")
    await held
    process = await _cost(mine, lambda: owner.start("q", seconds=1, steps=10, artifacts=2))
    end_and_links = await _cost(theirs, lambda: _end_and_links(other, "q"))
    costs = Costs(
        process,
        heartbeat,
        look,
        status,
        end_and_links,
        probe,
        start_up,
        await _cost(mine, owner.handler.presence._write),
        await _cost(mine, LastClean(store).look),
    )
    await store.close()
    await far.close()
    return costs


async def _start_up(worker: Caller, store: Store) -> None:
    """What `Handler.set_up` begins in the background."""
    await worker.manager.recover()
    await store.check()
    await worker.handler.presence._write()
    await worker.handler.presence._forget_the_dead()


async def _end_and_links(worker: Caller, process_id: str) -> None:
    for _ in range(POLLS):
        await worker("process_status", process_id=process_id)
    await worker("download", process_id=process_id)


async def _cost(meter: Meter, act: Callable[[], Awaitable[object]]) -> Requests:
    before = requests_of(meter)
    await act()
    return requests_of(meter) - before


async def _until_still(meter: Meter) -> None:
    """What a process does as it begins to run is done when nothing was asked for half a second."""
    seen = -1
    while seen != (seen := requests_of(meter).total()):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.5)
