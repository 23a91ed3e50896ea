"""8. How long the event loop stands still during each action.

Without what its thread was ready to run and no core was free for it, and without what the machine
stood still: server and children share the cores here, and how they do is not the worker's doing.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.bucket import BucketWorker, seed_rows, worker_on
from bench.ceph import section_ceph
from bench.figures import Figure, Goal, median, tail
from bench.idle_process import USUAL, Machine, idle_processes, waits_for_a_core
from bench.in_turn import bar
from tests.servers import Place

GOAL = Goal("<=", 20)
#: Seconds between two looks at the clock.
TICK = 0.001

Reply = dict[str, Any]
#: Says for how many seconds between two times the machine did.
StoodStill = Callable[[float, float], float]


class Tick(NamedTuple):
    """When it should have come, when it came, by `time.monotonic`, and its waits for a core."""

    asked: float
    came: float
    waits: float

    def late(self, stood_still: StoodStill) -> float:
        """Seconds that neither its waits nor the machine explain."""
        late = self.came - self.asked
        excuse = (
            self.waits if late <= USUAL else max(self.waits, stood_still(self.asked, self.came))
        )
        return max(0.0, late - excuse)


class Stalls:
    """How late each tick of the loop came."""

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
            with suppress(asyncio.CancelledError):
                await ticking

    async def _tick(self) -> None:
        with waits_for_a_core() as waited:
            awake, waits = time.monotonic(), waited()
            while True:
                await asyncio.sleep(TICK)
                # From one time awake to the next: it may lose Python's lock anywhere in between.
                asked, waits_before = awake + TICK, waits
                awake, waits = time.monotonic(), waited()
                self._ticks.append(Tick(asked, awake, waits - waits_before))

    def late(self, stood_still: StoodStill) -> list[float]:
        """Seconds for each tick."""
        return [tick.late(stood_still) for tick in self._ticks]

    def figure(self, name: str, machine: Machine, goal: Goal | None = GOAL) -> Figure:
        """The longest."""
        strict = max(self.late(machine.every_core_stood_still))
        everything = max(tick.came - tick.asked for tick in self._ticks)
        note = (
            f"of {len(self._ticks)} ticks; {1000 * strict:.1f} ms if only a stop of all cores is "
            f"the machine's, {1000 * everything:.0f} ms if nothing is"
        )
        return tail(name, self.late(machine.a_core_stood_still), 100, goal=goal, note=note)


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
        ended = opened.enter_context(idle_processes())
        actions = _actions(owner, other, names)

        async def upload(number: int) -> Reply:
            return await owner.start(f"big-{number}", artifacts=1, artifact_bytes=size)

        with bar(1 + len(actions) + uploads, "actions") as shown:
            idle = await _during("nothing at all", _nothing, range(1), shown)
            seen = {
                name: await _during(name, act, range(rounds), shown)
                for name, act in actions.items()
            }
            big = [await _during("an upload", upload, [n], shown) for n in range(uploads)]
        machine = ended()
        await owner("cancel", process_id="p")
        await held
    return [
        idle.figure("nothing at all", machine, goal=None),
        *(stalls.figure(name, machine) for name, stalls in seen.items()),
        *_of_uploads(f"{size >> 20} MB of artifacts", big, machine),
    ]


async def _during(
    name: str, act: Callable[[int], Awaitable[Reply]], numbers: Iterable[int], shown: tqdm[None]
) -> Stalls:
    """What the loop did while something was done for each number.

    Raises:
        RuntimeError: it was refused, or a process did not complete.
    """
    stalls = Stalls()
    for number in numbers:
        async with stalls.watched():
            reply = await act(number)
        if "error" in reply or reply.get("status") in ("cancelled", "interrupted"):
            raise RuntimeError(f"{name}: {reply}")
    shown.update()
    return stalls


async def _nothing(_: int) -> Reply:
    await asyncio.sleep(1)
    return {}


def _of_uploads(name: str, uploads: list[Stalls], machine: Machine) -> list[Figure]:
    """One upload is one long action, whose longest stall differs fivefold from time to time."""
    longest = [1000 * max(stalls.late(machine.a_core_stood_still)) for stalls in uploads]
    worst = uploads[longest.index(max(longest))]
    return [
        median(f"{name}, longest stall of each", longest, "ms", goal=GOAL),
        worst.figure(f"{name}, longest stall of all {len(uploads)}", machine),
    ]


def _actions(
    owner: BucketWorker, other: BucketWorker, names: list[str]
) -> dict[str, Callable[[int], Awaitable[Reply]]]:
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
