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

SLOTS = 25
#: What both take at a time.
CONCURRENCY = SLOTS + SPARE_CONCURRENCY
OURS, EMPTY = "worker", "empty"


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
    """A plane with `OURS`, the real worker on a folder in `folder`, and `EMPTY`."""
    settings = {"DATA_DIR": folder / "store", "SCRATCH_DIR": folder / "scratch", "SLOTS": SLOTS,
                "ALLOW_DETACH": 1}  # fmt: skip
    async with Plane() as plane:
        own = {f"WORKER_{name}": str(value) for name, value in settings.items()}
        concurrency = {"BENCH_CONCURRENCY": str(CONCURRENCY)}
        workers = [
            Worker(plane, SCRIPT, folder, OURS, own),
            Worker(plane, "bench/empty_worker.py", folder, EMPTY, concurrency),
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                await worker.wait_ready()
            yield plane
        except Exception:
            print(*(worker.story() for worker in workers), sep="\n", file=sys.stderr)
            raise
        finally:
            for worker in workers:
                worker.clean_up()
