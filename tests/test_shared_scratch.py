"""Workers of one machine that share a scratch disk: each answers from what it has seen itself."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from tests.servers import on_both_stores
from tests.test_three_workers import LONG, NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.endpoint import Endpoint


@on_both_stores
async def test_a_healthy_process_is_never_interrupted_to_another_worker_on_the_disk(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """Ceph RGW sends no `Last-Modified` with a 304, and the owner's copy of a record has no time:
    together they once made an age of 56 years."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(endpoint.worker(name, scratch_dir=tmp_path / "scratch"))
            for name in NAMES
        ]
        await asyncio.gather(*(worker.wait_ready() for worker in workers))
        job = endpoint.start(**LONG, only="w1")
        first = (await endpoint.running(job.id, step=1)).revision
        seen = first
        while seen < first + 20:
            for other in ("w2", "w3"):
                view = await endpoint.ask("process_status", process_id=job.id, only=other)
                assert (view["status"], view["source"]) == ("running", "storage")
                assert 0 <= view["heartbeat_age_seconds"] < 30  # the lease
                seen = view["revision"]
