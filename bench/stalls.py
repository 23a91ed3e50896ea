"""8. How long the event loop stands still during each action.

Leaves out the time in which the loop's thread was ready to run and had no core: the server and the
children share the cores here. Time in which the whole machine was stopped counts; the row of an
idle loop shows how much of that there is.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.bucket import BucketWorker, seed_rows, worker_on
from bench.ceph import section_ceph
from bench.figures import Figure, Goal, median, tail
from bench.in_turn import bar
from tests.servers import Place

GOAL = Goal("<=", 20)
#: Seconds between two looks at the clock.
TICK = 0.001

Reply = dict[str, Any]


class Tick(NamedTuple):
    """One wake-up of the loop, in seconds of `time.monotonic`."""

    due: float
    came: float
    #: How long the thread was ready in between and had no core.
    waits: float

    @property
    def late(self) -> float:
        """Seconds that waits for a core do not explain."""
        return max(0.0, self.came - self.due - self.waits)


@contextmanager
def waits_for_a_core() -> Iterator[Callable[[], float]]:
    """Return a function that tells how long this thread has been ready without a core so far.

    Reads Linux's `schedstat` by C's `pread` with Python's lock held: `os.pread` releases the lock,
    and the time until it is taken again would count as the loop's.
    """
    pread, text = ctypes.PyDLL(None, use_errno=True).pread, ctypes.create_string_buffer(128)
    pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
    pread.restype = ctypes.c_ssize_t
    with Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").open("rb") as file:

        def waited() -> float:
            if pread(file.fileno(), text, len(text) - 1, 0) <= 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), file.name)
            return int(text.value.split()[1]) / 1e9

        yield waited


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
                due, waits_before = awake + TICK, waits
                awake, waits = time.monotonic(), waited()
                self._ticks.append(Tick(due, awake, waits - waits_before))

    @property
    def late(self) -> list[float]:
        """Seconds for each tick."""
        return [tick.late for tick in self._ticks]

    def figure(self, name: str, goal: Goal | None = GOAL) -> Figure:
        """The longest."""
        everything = max(tick.came - tick.due for tick in self._ticks)
        note = f"of {len(self._ticks)} ticks; {1000 * everything:.0f} ms with waits for a core"
        return tail(name, self.late, 100, goal=goal, note=note)


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
        await owner("cancel", process_id="p")
        await held
    return [
        idle.figure("nothing at all", goal=None),
        *(stalls.figure(name) for name, stalls in seen.items()),
        *_of_uploads(f"{size >> 20} MB of artifacts", big),
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


def _of_uploads(name: str, uploads: list[Stalls]) -> list[Figure]:
    """One upload is one long action, whose longest stall differs fivefold from time to time."""
    longest = [1000 * max(stalls.late) for stalls in uploads]
    worst = uploads[longest.index(max(longest))]
    return [
        median(f"{name}, longest stall of each", longest, "ms", goal=GOAL),
        worst.figure(f"{name}, longest stall of all {len(uploads)}"),
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
