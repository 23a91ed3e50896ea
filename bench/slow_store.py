"""3. The same actions while each request takes 30 ms more."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

from bench.bucket import BucketWorker, Line, seed_rows, worker_on
from bench.ceph import section_ceph
from bench.figures import Figure, Goal, median, milliseconds
from bench.in_turn import Way, seconds_in_turn
from records.keys import record_key
from tests.servers import S3Server, client

DELAY_SECONDS = 0.03


def run(quick: bool) -> list[Figure]:
    """Times in milliseconds; the delay is added where botocore sends, as a far bucket would."""
    with tempfile.TemporaryDirectory() as folder, section_ceph() as server:
        return asyncio.run(_measure(server, Path(folder), 1 if quick else 30))


async def _measure(server: S3Server, folder: Path, rounds: int) -> list[Figure]:
    place = server.place()
    async with AsyncExitStack() as all_of_them:

        async def worker(**changes: Any) -> BucketWorker:
            return await all_of_them.enter_async_context(worker_on(place, folder, **changes))

        owner, other = await worker(slots=4), await worker()
        boto = all_of_them.enter_context(closing(client(server.endpoint_url, server.keys)))
        names = [f"bulk-{number}" for number in range(10)]
        await asyncio.gather(*(owner.start(name, artifacts=20) for name in names))
        await seed_rows(other.store, 1000)
        held = asyncio.create_task(owner.start("p", seconds=3600, steps=3600))
        await owner.seen("p", "running")
        key = f"{place['prefix']}/{record_key('p')}"

        def round_trip() -> Any:
            return boto.get_object(Bucket=place["bucket"] or "", Key=key)["Body"].read()

        line = Line()
        line.listen(boto)
        other.line.delay = line.delay = DELAY_SECONDS
        ways: dict[str, Way] = {
            "round trip": lambda: asyncio.to_thread(round_trip),
            "status": _asking(other, "process_status", process_id="p"),
            "list": _asking(other, "processes", limit=1000),
        }
        taken = await seconds_in_turn(ways, rounds, "30 ms a request")
        taken["bulk"] = await _bulk_by_newcomers(worker, names, rounds)
        other.line.delay = 0
        await owner("cancel", process_id="p")
        await held
    over = [1000 * (a - b) for a, b in zip(taken["status"], taken["round trip"], strict=True)]
    return [
        milliseconds("one GET by boto3 alone", taken["round trip"]),
        milliseconds("status by another worker", taken["status"]),
        median("status, more than that GET", over, "ms", goal=Goal("<=", 5)),
        milliseconds("a list of 1000 processes", taken["list"], goal=Goal("<=", 100)),
        milliseconds("links of 10 processes of 20 files", taken["bulk"], goal=Goal("<=", 150)),
    ]


async def _bulk_by_newcomers(
    worker: Callable[..., Coroutine[Any, Any, BucketWorker]], names: list[str], rounds: int
) -> list[float]:
    """Each time by a worker that has met none of these processes: others answer from RAM."""
    newcomers = [await worker() for _ in range(rounds + 1)]
    for newcomer in newcomers:
        newcomer.line.delay = DELAY_SECONDS
    taking_turns = iter(newcomers)

    async def bulk() -> None:
        await _asking(next(taking_turns), "bulk_download", process_ids=names)()

    return (await seconds_in_turn({"bulk": bulk}, rounds, "links"))["bulk"]


def _asking(worker: BucketWorker, action: str, **fields: Any) -> Way:
    async def ask() -> None:
        reply = await worker(action, **fields)
        if "error" in reply:
            raise RuntimeError(f"{action}: {reply['error']}")

    return ask
