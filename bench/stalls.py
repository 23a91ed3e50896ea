"""8. How long the event loop stands still during each action (but for what the machine does)."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.bucket import BucketWorker, seed_rows, worker_on
from bench.ceph import section_ceph
from bench.figures import Figure, Goal, median, tail
from bench.idle_process import TICK, Oversleep, idle_processes, stood_still, waits_for_a_core
from bench.in_turn import bar
from tests.servers import Place

GOAL = Goal("<=", 20)


class Tick(NamedTuple):
    """When it should have come, when it came, by `time.monotonic`, and its waits for a core."""

    asked: float
    came: float
    waits: float

    def late(self, machine: Sequence[Oversleep]) -> float:
        """Seconds that neither its waits nor the machine explain."""
        late = self.came - self.asked
        return max(0.0, late - max(self.waits, stood_still(machine, self.asked, self.came)))


class Stalls:
    """How late each tick of the loop came.

    Without what its thread was ready to run and no core was free for it, and without what the
    machine stood still: server and children share the cores here, and how they do is not the
    worker's doing.
    """

    def __init__(self) -> None:
        self._ticks: list[Tick] = []

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Listen to the loop while the block runs."""
        ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(2 * TICK)
        try:
            yield
        finally:
            await asyncio.sleep(2 * TICK)
            ticking.cancel()

    async def _tick(self) -> None:
        with waits_for_a_core() as waited:
            while True:
                asked, waited_before = time.monotonic() + TICK, waited()
                await asyncio.sleep(TICK)
                waits = waited() - waited_before
                self._ticks.append(Tick(asked, time.monotonic(), waits))

    def late(self, machine: Sequence[Oversleep]) -> list[float]:
        """Seconds for each tick."""
        return [tick.late(machine) for tick in self._ticks]

    def figure(self, name: str, machine: Sequence[Oversleep], goal: Goal | None = GOAL) -> Figure:
        """The longest."""
        raw = max(tick.came - tick.asked for tick in self._ticks)
        note = f"of {len(self._ticks)} ticks; {1000 * raw:.0f} ms with all that the machine did"
        return tail(name, self.late(machine), 100, goal=goal, note=note)


def run(quick: bool) -> list[Figure]:
    """Milliseconds, on Ceph RGW: the longest stall of each, and what an idle loop shows."""
    with tempfile.TemporaryDirectory() as folder, section_ceph() as server:
        return asyncio.run(_measure(server.place(), Path(folder), quick=quick))


async def _measure(place: Place, folder: Path, *, quick: bool) -> list[Figure]:
    size, rounds, uploads = (1 << 27, 1, 1) if quick else (1 << 30, 20, 4)
    async with AsyncExitStack() as opened:
        owner, other = [
            await opened.enter_async_context(worker_on(place, folder, slots=4)) for _ in range(2)
        ]
        names = [f"bulk-{number}" for number in range(10)]
        await asyncio.gather(*(owner.start(name, artifacts=20, print_lines=200) for name in names))
        await seed_rows(other.store, 1000)
        held = asyncio.create_task(owner.start("p", seconds=3600, steps=36_000))
        await owner.seen("p", "running", step=1)
        oversleeps = opened.enter_context(idle_processes(folder))
        actions = _actions(owner, other, names)
        with bar(1 + len(actions) + uploads, "actions") as shown:
            idle = await _during(lambda _: _nothing(), 1, shown)
            seen = {name: await _during(act, rounds, shown) for name, act in actions.items()}
            big = [
                await _during(
                    lambda _, n=n: owner.start(f"big-{n}", artifacts=1, artifact_bytes=size),
                    1,
                    shown,
                )
                for n in range(uploads)
            ]
        await owner("cancel", process_id="p")
        await held
        machine = oversleeps()
    return [
        idle.figure("nothing at all", machine, goal=None),
        *(stalls.figure(name, machine) for name, stalls in seen.items()),
        *_of_uploads(f"{size >> 20} MB of artifacts", big, machine),
    ]


async def _during(
    act: Callable[[int], Awaitable[dict[str, Any]]], rounds: int, shown: tqdm[None]
) -> Stalls:
    """What the loop did while something was done so many times.

    Raises:
        RuntimeError: it was refused, or failed.
    """
    stalls = Stalls()
    for number in range(rounds):
        async with stalls.watched():
            reply = await act(number)
        if "error" in reply:
            raise RuntimeError(reply["error"])
    shown.update()
    return stalls


async def _nothing() -> dict[str, Any]:
    await asyncio.sleep(1)
    return {}


def _of_uploads(name: str, uploads: list[Stalls], machine: Sequence[Oversleep]) -> list[Figure]:
    """One upload is one long action, whose longest stall differs fivefold from time to time."""
    longest = [1000 * max(stalls.late(machine)) for stalls in uploads]
    worst = uploads[longest.index(max(longest))]
    return [
        median(f"{name}, longest stall of each", longest, "ms", goal=GOAL),
        worst.figure(f"{name}, longest stall of all {len(uploads)}", machine),
    ]


def _actions(
    owner: BucketWorker, other: BucketWorker, names: list[str]
) -> dict[str, Callable[[int], Awaitable[dict[str, Any]]]]:
    """What is asked, once a round."""
    files = [{"path": f"{number}.bin", "size": 1} for number in range(100)]
    return {
        "start to its end": lambda n: owner.start(f"s-{n}", artifacts=3, checkpoint_every=1),
        "process_status": lambda _: other("process_status", process_id="p"),
        "processes": lambda _: other("processes", limit=1000),
        "download": lambda _: other("download", process_id=names[0]),
        "bulk_download": lambda _: other("bulk_download", process_ids=names),
        "bulk_download as an archive": lambda n: other(
            "bulk_download", archive=True, process_id=f"zip-{n}", process_ids=names
        ),
        "download_file": lambda _: other(
            "download_file", process_id=names[0], path="artifact-1.bin"
        ),
        "list_files": lambda _: other("list_files", process_id=names[0]),
        "upload": lambda n: other("upload", folder=f"f-{n}", files=files),
        "logs": lambda _: other("logs", process_id=names[0]),
        "kinds": lambda _: other("kinds"),
        "health": lambda _: other("health"),
        "health, deep": lambda _: other("health", deep=True),
        "metrics": lambda _: other("metrics"),
        "cancel of an ended process": lambda _: other("cancel", process_id=names[0]),
        "delete": lambda n: other("delete", process_id=f"s-{n}", confirm=f"s-{n}"),
    }
