"""1. Dispatch inside the worker: parse, act, reply."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Figure, Goal, milliseconds, tail
from bench.in_turn import bar
from stores.local.store import LocalStore
from tests.kit import Caller

#: A request goes through the whole handler, but not through the SDK's loop or a network.
REQUESTS: dict[str, dict[str, Any]] = {
    "process_status of a running process": {"action": "process_status", "process_id": "p"},
    "process_status of an ended process": {"action": "process_status", "process_id": "old"},
    "a field that does not exist": {"action": "process_status", "process_ids": "p"},
    "a value of the wrong type": {"action": "processes", "limit": "many"},
    "an unknown action": {"action": "proces_status"},
}
P50, P99 = Goal("<=", 0.15), Goal("<", 1.0)


def run(quick: bool) -> list[Figure]:
    """p50 and p99 of each request, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder), 2_000 if quick else 20_000))


async def _measure(folder: Path, times: int) -> list[Figure]:
    worker = Caller(LocalStore(folder / "store"), folder / "scratch", background=False)
    await worker.start("old", seconds=0, steps=1)
    held = asyncio.create_task(worker.start("p", seconds=3600, steps=3600))
    await worker.seen("p", "running", step=1)
    taken: dict[str, list[float]] = {name: [] for name in REQUESTS}
    with bar(times, "requests") as shown:
        for _ in range(times):
            for name, request in REQUESTS.items():
                began = time.perf_counter()
                await worker.handler({"id": "bench", "input": request})
                taken[name].append(time.perf_counter() - began)
            shown.update()
            await asyncio.sleep(0)  # what else the worker does, it does between requests
    await worker("cancel", process_id="p")
    await held
    return [
        figure
        for name, seconds in taken.items()
        for figure in (
            milliseconds(f"{name}, p50", seconds, goal=P50),
            tail(f"{name}, p99", seconds, 99, goal=P99),
        )
    ]
