"""11. train_diffusion: steps per second in the worker against the same loop run bare."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from bench.figures import Figure, Goal, median, ratio
from bench.in_turn import seconds_in_turn
from stores.local_store import LocalStore
from tests.kit import Caller

BARE = Path(__file__).with_name("bare_training.py")
#: The first steps make room and warm caches.
FIRST_STEP = 10
#: Neither samples nor checkpoints before the end: those are the kind's work, not the worker's.
PARAMS: dict[str, Any] = {
    "dataset": "examples/digits/images", "image_size": 16, "channels": 16, "batch_size": 64,
    "sample_every": 100_000, "checkpoint_every": 100_000, "device": "auto",
}  # fmt: skip


def run(quick: bool) -> list[Figure]:
    """Medians of steps/s, and the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder), steps=40 if quick else 300, quick=quick))


async def _measure(folder: Path, *, steps: int, quick: bool) -> list[Figure]:
    worker = Caller(LocalStore(folder / "store"), folder / "scratch", background=False,
                    heartbeat_seconds=10, lease_seconds=30, progress_write_seconds=5,
                    cancel_poll_seconds=2)  # fmt: skip
    params = PARAMS | {"steps": steps}
    rates: dict[str, list[float]] = {"worker": [], "bare": []}
    numbers = count()

    async def bare() -> None:
        rates["bare"].append(await asyncio.to_thread(_bare, params))

    async def in_worker() -> None:
        rates["worker"].append(await _in_worker(worker, f"t-{next(numbers)}", params))

    rounds = 1 if quick else 5
    await seconds_in_turn({"bare": bare, "worker": in_worker}, rounds, "training", warm_up=0)
    return [
        median("steps/s in the worker", rates["worker"], "1/s"),
        median("steps/s of the bare loop", rates["bare"], "1/s"),
        ratio("worker to bare", rates["worker"], rates["bare"], goal=Goal(">=", 0.97)),
    ]


def _bare(params: dict[str, Any]) -> float:
    """Steps per second of the loop in a process of its own."""
    command = [sys.executable, str(BARE), json.dumps(params), str(FIRST_STEP)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(ended.stdout)


async def _in_worker(worker: Caller, name: str, params: dict[str, Any]) -> float:
    """Steps per second between the first progress seen after `FIRST_STEP` and the last."""
    start = worker("start", kind="train_diffusion", process_id=name, params=params)
    task = asyncio.create_task(start)
    first = last = None
    while not task.done():
        await asyncio.wait([task], timeout=0.2)  # seldom: whoever looks takes the loop's time
        run = worker.manager.lookup.held(name)
        progress = run.lease.record.progress if run else None
        if progress and progress.at and progress.step >= FIRST_STEP:
            first, last = first or progress, progress
    reply = await task
    if reply["status"] != "completed" or first is None or last is None or last.step <= first.step:
        raise RuntimeError(f"the training ended as {reply['status']}: {reply['failure']}")
    return (last.step - first.step) / (last.at - first.at).total_seconds()
