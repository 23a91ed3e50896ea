"""8. How long the event loop stands still during each action (but for waits for a core)."""

from __future__ import annotations

import asyncio
import ctypes
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bench.bucket import BucketWorker, seed_rows, worker_on
from bench.ceph import section_ceph
from bench.figures import Figure, Goal, median, tail
from bench.in_turn import bar
from tests.servers import Place

#: Seconds between two looks at the clock.
TICK = 0.001
GOAL = Goal("<=", 20)


class Stalls:
    """How much later than asked for each tick of the loop came, in seconds.

    Without what its thread was ready to run and no core was free for it: the server and the
    children share the cores here, and how they do is not the worker's doing.
    """

    def __init__(self) -> None:
        self.late: list[float] = []
        self._worst_with_waits = 0.0

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
                before, waited_before = time.perf_counter(), waited()
                await asyncio.sleep(TICK)
                waits = waited() - waited_before
                late = time.perf_counter() - before - TICK
                self._worst_with_waits = max(self._worst_with_waits, late)
                self.late.append(max(0.0, late - waits))

    def figure(self, name: str) -> Figure:
        """The longest."""
        waits = f"{1000 * self._worst_with_waits:.0f} ms with waits for a core"
        return tail(name, self.late, 100, goal=GOAL, note=f"of {len(self.late)} ticks; {waits}")


@contextmanager
def waits_for_a_core() -> Iterator[Callable[[], float]]:
    """Says for how many seconds this thread was ready and had no core, so far (Linux, `schedstat`).

    By C's `pread` and with Python's lock held: `os.pread` gives it away, and what it takes to get
    it back would be measured as the loop's.
    """
    pread, text = ctypes.PyDLL(None, use_errno=True).pread, ctypes.create_string_buffer(128)
    pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
    pread.restype = ctypes.c_ssize_t
    with Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").open("rb") as file:

        def waited() -> float:
            if pread(file.fileno(), text, len(text) - 1, 0) <= 0:
                raise OSError(ctypes.get_errno(), f"{file.name} could not be read")
            return int(text.value.split()[1]) / 1e9

        yield waited


def run(quick: bool) -> list[Figure]:
    """Milliseconds, on Ceph RGW: the longest stall of each, and what an idle loop shows."""
    with tempfile.TemporaryDirectory() as folder, section_ceph() as server:
        return asyncio.run(_measure(server.place(), Path(folder), quick=quick))


async def _measure(place: Place, folder: Path, *, quick: bool) -> list[Figure]:
    size, rounds, uploads = (1 << 27, 1, 1) if quick else (1 << 30, 20, 4)
    async with AsyncExitStack() as workers:
        owner, other = [
            await workers.enter_async_context(worker_on(place, folder, slots=4)) for _ in range(2)
        ]
        names = [f"bulk-{number}" for number in range(10)]
        await asyncio.gather(*(owner.start(name, artifacts=20, print_lines=200) for name in names))
        await seed_rows(other.store, 1000)
        held = asyncio.create_task(owner.start("p", seconds=3600, steps=36_000))
        await owner.seen("p", "running", step=1)
        actions = _actions(owner, other, names)
        figures = [await _idle(1.0)]
        longest: list[Stalls] = []
        with bar(len(actions) + uploads, "actions") as shown:
            for name, act in actions.items():
                stalls = Stalls()
                for number in range(rounds):
                    async with stalls.watched():
                        reply = await act(number)
                    if "error" in reply:
                        raise RuntimeError(f"{name}: {reply['error']}")
                figures.append(stalls.figure(name))
                shown.update()
            for number in range(uploads):
                longest.append(stalls := Stalls())
                async with stalls.watched():
                    reply = await owner.start(f"big-{number}", artifacts=1, artifact_bytes=size)
                if reply.get("status") != "completed":
                    raise RuntimeError(f"an upload: {reply}")
                shown.update()
        await owner("cancel", process_id="p")
        await held
        return [*figures, *_of_uploads(longest, size)]


def _of_uploads(uploads: list[Stalls], size: int) -> list[Figure]:
    """One upload is one long action, whose longest stall differs fivefold from time to time."""
    name = f"{size >> 20} MB of artifacts"
    usual = [1000 * max(stalls.late) for stalls in uploads]
    worst = max(uploads, key=lambda stalls: max(stalls.late))
    return [
        median(f"{name}, longest stall of each", usual, "ms", goal=GOAL),
        worst.figure(f"{name}, longest stall of all {len(uploads)}"),
    ]


async def _idle(seconds: float) -> Figure:
    """What the machine itself does to a loop that has nothing to do."""
    stalls = Stalls()
    async with stalls.watched():
        await asyncio.sleep(seconds)
    return stalls.figure("nothing at all")._replace(goal=None)


def _actions(
    owner: BucketWorker, other: BucketWorker, names: list[str]
) -> dict[str, Callable[[int], Awaitable[Any]]]:
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
