"""6. Cold start, and from a start to its running child."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from bench import start_to_running
from bench.figures import Figure, median, milliseconds, quartiles, ratio
from bench.in_turn import bar, seconds_in_turn
from processes.record import Record
from tests.control_plane import ControlPlane, Job
from tests.endpoint import SCRIPT, Endpoint
from tests.worker_process import Worker

#: The SDK's loop with a handler that answers at once.
EMPTY = "bench/empty_worker.py"


class Start(NamedTuple):
    """Seconds from the start of a worker's process."""

    taken: float
    answered: float


def run(quick: bool) -> list[Figure]:
    """Times of whole processes; torch is on disk, and in the system's cache after the first."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = 2 if quick else 10
        return [
            *asyncio.run(_imports(rounds)),
            *asyncio.run(_workers(Path(folder), rounds)),
            *_starts(Path(folder), 3 if quick else 20),
        ]


# ---- imports


async def _imports(rounds: int) -> list[Figure]:
    async def importing(modules: str) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import {modules}")
        if await process.wait():
            raise RuntimeError(f"import {modules} failed")

    ways = {
        "SDK": lambda: importing("runpod"),
        "worker": lambda: importing("runpod, rp_handler"),
    }
    taken = await seconds_in_turn(ways, rounds, "imports")
    above = [1000 * (a - b) for a, b in zip(taken["worker"], taken["SDK"], strict=True)]
    return [
        milliseconds("import of the SDK", taken["SDK"]),
        median("import of the worker, above that", above, "ms"),
    ]
