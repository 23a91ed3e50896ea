"""6. Cold start, and from a start to its running child."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench import start_to_running
from bench.figures import Figure, Goal, median, milliseconds
from bench.in_turn import bar, seconds_in_turn
from tests.control_plane import ControlPlane
from tests.endpoint import SCRIPT
from tests.worker_process import ROOT, Worker

#: The SDK's loop with a handler that answers at once.
EMPTY = "bench/empty_worker.py"
START = {"action": "start", "kind": "sleep", "params": {"seconds": 0, "steps": 1}}


class Seen(NamedTuple):
    """Seconds from the moment that a worker's process was started."""

    taken: float
    answered: float
    #: When the first process had a child; 0 for a worker that runs none.
    running: float = 0.0


def run(quick: bool) -> list[Figure]:
    """Times in milliseconds, of whole processes, in turn; the system's file cache is warm."""
    rounds = 1 if quick else 10
    with tempfile.TemporaryDirectory() as folder:
        starts, warm_up = (1, 0) if quick else (20, 1)
        seen = asyncio.run(
            start_to_running.measure(starts, Path(folder) / "starts", warm_up=warm_up)
        )
        return [
            *asyncio.run(_imports(rounds)),
            *asyncio.run(_workers(Path(folder), rounds)),
            *start_to_running.figures_of(seen),
        ]


async def _imports(rounds: int) -> list[Figure]:
    async def importing(modules: str) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import {modules}")
        if await process.wait():
            raise RuntimeError(f"import {modules} failed")

    ways = {
        "SDK": lambda: importing("runpod"),
        "worker": lambda: importing("runpod, rp_handler"),
    }
    taken = await seconds_in_turn(ways, rounds, "imports", warm_up=0)  # their files were just read
    above = [1000 * (a - b) for a, b in zip(taken["worker"], taken["SDK"], strict=True)]
    return [
        milliseconds("import of the SDK", taken["SDK"]),
        median("import of the worker, above that", above, "ms"),
    ]


async def _workers(folder: Path, rounds: int) -> list[Figure]:
    """Each in a new process, with jobs that wait; neither asks py-cpuinfo for the processor."""
    seen: dict[str, list[Seen]] = {EMPTY: [], SCRIPT: []}
    with bar(rounds * len(seen), "cold starts") as shown:
        for number in range(rounds):
            for script, so_far in list(seen.items())[:: 1 if number % 2 else -1]:
                disk = tempfile.mkdtemp(dir=folder, prefix=f"{number}-")
                so_far.append(await _cold_start(Path(disk), script))
                shown.update()
    ours, empty = seen[SCRIPT], seen[EMPTY]
    floor = await _python_seconds() + await asyncio.to_thread(own_import_seconds)
    return [
        milliseconds("cold worker to its first job, empty handler", [s.taken for s in empty]),
        milliseconds("cold worker to its first job", [s.taken for s in ours]),
        milliseconds(
            "of these, beyond `python -c pass` and the worker's own modules",
            [s.taken - floor for s in ours],
            goal=Goal("<=", 500),
        ),
        milliseconds("cold worker to its first answer, empty handler", [s.answered for s in empty]),
        milliseconds("cold worker to its first answer", [s.answered for s in ours]),
        milliseconds("cold worker to its first running child", [s.running for s in ours]),
        milliseconds("of these, from the job's arrival", [s.running - s.taken for s in ours]),
    ]


async def _python_seconds() -> float:
    """How long an interpreter takes that does nothing."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await process.wait()
    return time.perf_counter() - began


def own_import_seconds() -> float:
    """How long the worker's own modules take to import, those that they import left out."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import rp_handler"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.removeprefix("import time:").split("|") for line in ended.stderr.splitlines()[1:]]
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    return sum(int(own) for own, _, name in rows if name.strip().split(".")[0] in ours) / 1e6


async def _cold_start(folder: Path, script: str) -> Seen:
    own = {
        "WORKER_DATA_DIR": str(folder / "store"),
        "WORKER_SCRATCH_DIR": str(folder / "scratch"),
        "BENCH_CONCURRENCY": "8",
    }
    with redirect_stderr(io.StringIO()):  # a plane and a worker tell a test's reader their story
        async with ControlPlane() as plane:
            first = plane.submit({"action": "kinds"})
            second = plane.submit(START)
            began, began_at = time.monotonic(), datetime.now(UTC)
            async with Worker(plane, script, folder, env=own):
                await plane.finished(first.id, 60)
                await plane.finished(second.id, 60)
    seen = Seen(first.taken_at - began, first.finished_at - began)
    if script == EMPTY:
        return seen
    return seen._replace(running=(_started_at(second.output) - began_at).total_seconds())


def _started_at(view: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(view["started_at"])
