"""This worker and an empty one, under the unmodified SDK loop and the tests' control plane."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from rp_handler import SPARE_CONCURRENCY
from tests.control_plane import ControlPlane, Job
from tests.endpoint import SCRIPT
from tests.worker_process import Worker

#: What each of them takes at a time: what a worker takes by default, with one slot.
CONCURRENCY = 1 + SPARE_CONCURRENCY
#: The worker in which a process runs, the one that does nothing, and one whose slot is free.
OURS, EMPTY, IDLE = "worker", "empty", "idle"


class Plane(ControlPlane):
    """Tells a caller of its own answer alone, and forgets it: thousands are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[str, asyncio.Future[None]] = {}

    async def ask(self, worker_id: str, job_input: Any) -> Any:
        """What this worker answers."""
        job = self.submit(job_input, only=worker_id)
        self._ends[job.id] = asyncio.get_running_loop().create_future()
        await self._ends[job.id]
        del self._ends[job.id], self.jobs[job.id]
        if job.status != "COMPLETED":
            raise RuntimeError(f"{job_input}: {job.status} {job.error}")
        return job.output

    def _finish(self, job: Job, status: str, what: str) -> None:
        super()._finish(job, status, what)
        self._ends[job.id].set_result(None)

    async def __aexit__(self, *exc: object) -> None:
        with redirect_stderr(io.StringIO()):  # a test's reader wants the story of each poll
            await super().__aexit__(*exc)


@asynccontextmanager
async def sdk_workers(folder: Path) -> AsyncIterator[Plane]:
    """A plane with `OURS`, `EMPTY` and `IDLE`; what they keep lies in `folder`."""
    async with Plane() as plane:
        concurrency = {"BENCH_CONCURRENCY": str(CONCURRENCY)}
        workers = [
            Worker(plane, SCRIPT, folder, OURS, _settings(folder / OURS)),
            Worker(plane, SCRIPT, folder, IDLE, _settings(folder / IDLE)),
            Worker(plane, "bench/empty_worker.py", folder, EMPTY, concurrency),
        ]
        started = []
        try:
            for worker in workers:
                worker.start()
                started.append(worker)
            for worker in workers:
                await worker.wait_ready()
            yield plane
        except Exception:
            print(*(worker.story() for worker in started), sep="\n", file=sys.stderr)
            raise
        finally:
            for worker in started:
                worker.clean_up()


def _settings(folder: Path) -> dict[str, str]:
    """The defaults, but that a start may return at once."""
    return {
        "WORKER_DATA_DIR": str(folder / "store"),
        "WORKER_SCRATCH_DIR": str(folder / "scratch"),
        "WORKER_ALLOW_DETACH": "1",
    }
