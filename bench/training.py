"""11. train_diffusion: steps per second in the worker against the same loop run bare.

All are there all the time and have the machine in turn, some seconds each, while the others are
frozen: what a shared machine gives changes by a tenth within ten seconds, and so all get the same.
And all begin several times: two runs of one program differ by some percent for as long as they
live, by where its memory lies.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tqdm import tqdm

from bench.figures import Figure, Goal, median, ratio
from bench.in_turn import bar
from child.environment import child_environment
from stores.local.store import LocalStore
from tests.kit import Caller

BARE_LOOP = Path(__file__).with_name("bare_training.py")
#: The first steps make room and warm caches.
FIRST_STEP = 10
#: How often all begin, and how often and for how many seconds each then has the machine.
ROUNDS, TURNS, QUICK_TURNS, TURN_SECONDS = 8, 6, 1, 2.0
#: Neither samples nor checkpoints nor an end: those are the kind's work, not the worker's.
PARAMS: dict[str, Any] = {
    "dataset": "examples/digits/images",
    "image_size": 16,
    "channels": 16,
    "batch_size": 64,
    "sample_every": 100_000,
    "checkpoint_every": 100_000,
    "steps": 100_000,
    "device": "auto",
}

WORKER, BARE = "in the worker", "of the bare loop"
ALIKE = "of the bare loop in a child's environment"


class Way(NamedTuple):
    """A training that is under way."""

    #: The last step that it took.
    step: Callable[[], int]
    processes: list[psutil.Process]

    def send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)


def run(quick: bool) -> list[Figure]:
    """Medians of steps/s, and the ratios; a quick run leaves out the second bare loop."""
    rates: dict[str, list[float]] = {WORKER: [], BARE: []} | ({} if quick else {ALIKE: []})
    rounds, turns = (1, QUICK_TURNS) if quick else (ROUNDS, TURNS)
    with bar(rounds * turns, "turns of training") as shown:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                asyncio.run(_round(Path(folder), turns, rates, shown))
    note = "how OpenMP's threads wait in it and what glibc keeps: child/environment.py"
    found = [median(f"steps/s {name}", rate, "1/s") for name, rate in rates.items()]
    found.append(ratio("worker to bare", rates[WORKER], rates[BARE], goal=Goal(">=", 0.97)))
    if ALIKE in rates:
        alike = "worker to bare in a child's environment"
        found.append(ratio(alike, rates[WORKER], rates[ALIKE], note=note))
    return found


async def _round(
    folder: Path, turns: int, rates: dict[str, list[float]], shown: tqdm[None]
) -> None:
    """Begin them, and give them the machine in turn; of each, the rate of all its turns together.

    In one turn there are so few steps that one more or less is a twentieth.
    """
    begin = {
        WORKER: lambda: _in_worker(folder),
        BARE: lambda: _bare(dict(os.environ)),
        ALIKE: lambda: _bare(child_environment(os.environ, {})),
    }
    async with AsyncExitStack() as stack:
        ways = {}
        for name in rates:
            ways[name] = await stack.enter_async_context(begin[name]())
            await stack.enter_async_context(_frozen(ways[name]))
        steps, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
        for number in range(turns):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                taken, lasted = await _turn(ways[name])
                steps[name] += taken
                seconds[name] += lasted
            shown.update()
    for name in ways:
        rates[name].append(steps[name] / seconds[name])


@asynccontextmanager
async def _frozen(way: Way) -> AsyncIterator[None]:
    """But for its turns."""
    way.send(signal.SIGSTOP)
    try:
        yield
    finally:
        way.send(signal.SIGCONT)


async def _turn(way: Way) -> tuple[int, float]:
    """Steps, and seconds. A step that is cut off goes on in the next turn."""
    before, began = way.step(), time.perf_counter()
    way.send(signal.SIGCONT)
    await asyncio.sleep(TURN_SECONDS)
    way.send(signal.SIGSTOP)
    seconds = time.perf_counter() - began
    await asyncio.sleep(0.05)  # what was said last is on its way
    return way.step() - before, seconds


@asynccontextmanager
async def _in_worker(folder: Path) -> AsyncIterator[Way]:
    """A process of this worker; frozen is the child, and what guards it, not the worker."""
    worker = Caller(
        LocalStore(folder / "store"),
        folder / "scratch",
        background=False,
        heartbeat_seconds=10,
        lease_seconds=30,
        progress_write_seconds=5,
        cancel_poll_seconds=2,
    )
    start = worker("start", kind="train_diffusion", process_id="t", params=PARAMS)
    task = asyncio.create_task(start)

    def step() -> int:
        run = worker.manager.runs.held("t")
        progress = run.lease.record.progress if run else None
        return progress.step if progress else 0

    try:
        await _warm(step, task.done)
        yield Way(step, psutil.Process().children(recursive=True))
    finally:
        await worker("cancel", process_id="t")
        await task


@asynccontextmanager
async def _bare(environment: dict[str, str]) -> AsyncIterator[Way]:
    """The loop in a process of its own, which says each step."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        BARE_LOOP,
        json.dumps(PARAMS),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    steps = [0]

    async def listen(said: asyncio.StreamReader) -> None:
        async for line in said:
            steps[0] = int(line)

    listening = asyncio.create_task(listen(process.stdout))
    try:
        await _warm(lambda: steps[0], lambda: process.returncode is not None)
        yield Way(lambda: steps[0], [psutil.Process(process.pid)])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening


async def _warm(step: Callable[[], int], ended: Callable[[], bool]) -> None:
    while step() < FIRST_STEP:
        if ended():
            raise RuntimeError("the training ended before it had begun")
        await asyncio.sleep(0.2)
