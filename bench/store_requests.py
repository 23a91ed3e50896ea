"""2. Requests to the bucket, per action (exact)."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from bench.bucket import BucketWorker, seed_rows, worker_on
from bench.ceph import section_ceph
from bench.figures import Figure, Goal, count
from bench.in_turn import bar
from tests.servers import Place
from worker.settings import Settings

#: As operators have them who set nothing: what is counted per hour depends on them.
DEFAULTS = {
    name: getattr(Settings(), name)
    for name in (
        "heartbeat_seconds",
        "lease_seconds",
        "progress_write_seconds",
        "cancel_poll_seconds",
    )
}
ONE_GET, ONE_LIST = {"GetObject": 1}, {"ListObjectsV2": 1}


def run(quick: bool) -> list[Figure]:
    """Exact numbers of requests, counted where botocore sends them; Ceph RGW answers."""
    with tempfile.TemporaryDirectory() as folder, section_ceph() as server:
        return asyncio.run(_measure(server.place(), Path(folder), 6 if quick else 120))


async def _measure(place: Place, folder: Path, seconds: int) -> list[Figure]:
    async with AsyncExitStack() as workers:
        owner, other = [
            await workers.enter_async_context(worker_on(place, folder, slots=4, **DEFAULTS))
            for _ in range(2)
        ]
        with bar(4, "requests") as shown:
            figures = await _of_status(owner, other)
            shown.update()
            figures += await _of_lists(other)
            shown.update()
            figures += await _of_links(owner, other)
            shown.update()
            figures.append(await _writes_per_hour(owner, seconds))
            shown.update()
        return figures


async def _of_status(owner: BucketWorker, other: BucketWorker) -> list[Figure]:
    held = asyncio.create_task(owner.start("p", seconds=3600, steps=3600))
    await owner.seen("p", "running")
    poll = {"action": "process_status", "process_id": "p"}
    figures = [
        _exactly("status by the owner", {}, await owner.requests_of(**poll)),
        _exactly("status by another worker", ONE_GET, await other.requests_of(**poll)),
        _exactly("the same again", ONE_GET, await other.requests_of(**poll)),
    ]
    await owner("cancel", process_id="p")
    await held
    return [
        *figures,
        _exactly("status by another worker, ended", ONE_GET, await other.requests_of(**poll)),
        _exactly("the same again, ended", {}, await other.requests_of(**poll)),
    ]


async def _of_lists(other: BucketWorker) -> list[Figure]:
    await seed_rows(other.store, 1000)
    sent = await other.requests_of("processes", limit=1000)
    return [_exactly("a list of 1000 processes", ONE_LIST, sent)]


async def _of_links(owner: BucketWorker, other: BucketWorker) -> list[Figure]:
    names = [f"bulk-{number}" for number in range(10)]
    await asyncio.gather(*(owner.start(name, artifacts=20) for name in names))
    figures = []
    for name, expected in (
        ("links of 10 processes of 20 files", {"GetObject": 10}),
        ("the same again", {}),
    ):
        sent = await other.requests_of("bulk_download", process_ids=names)
        figures.append(_exactly(name, expected, sent))
    return figures


async def _writes_per_hour(owner: BucketWorker, seconds: int) -> Figure:
    """Of a process that reports 10 times a second. By the clock, so that it decides nothing."""
    step = asyncio.create_task(owner.start("hour", seconds=3600, steps=36_000))
    await owner.seen("hour", "running", step=1)
    owner.line.requests.clear()
    await asyncio.sleep(seconds)
    writes = sum(
        n for name, n in owner.line.requests.items() if name in ("PutObject", "UploadPart")
    )
    await owner("cancel", process_id="hour")
    await step
    return Figure(
        "writes per hour of a process that reports 10 times a second",
        writes * 3600 / seconds,
        "writes",
        goal=Goal("<=", 720),
        note=f"{writes} in {seconds} s, with default settings",
    )


def _exactly(name: str, expected: dict[str, int], sent: dict[str, int]) -> Figure:
    """The sum; what is expected, by operation, is the goal, and any other mixture misses it."""
    asked = ", ".join(f"{n} {operation}" for operation, n in sorted(sent.items())) or "none"
    wanted = sum(expected.values())
    value = sum(sent.values()) if sent == expected else max(sum(sent.values()), wanted + 1)
    return count(name, value, goal=Goal("==", wanted), note=asked)
