"""An endpoint: a control plane, a store, and real workers that share nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from records.record import Record
from tests.invariants import read_record
from tests.patience import PATIENCE
from tests.servers import open_place
from tests.worker_process import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.control_plane import ControlPlane, Job
    from tests.kit import Reply
    from tests.servers import Place

SCRIPT = "rp_handler.py"
#: A lease that no busy test machine loses, with all else quick.
PATIENT = {
    "heartbeat_seconds": 0.5,
    "lease_seconds": 30,
    "takeover_watch_seconds": 1,
    "progress_write_seconds": 0.2,
    "cancel_poll_seconds": 0.2,
    "cancel_grace_seconds": 2,
    "grace_seconds": 6,
}
#: For those that wait for a lease to be lost.
SHORT_LEASE = {"lease_seconds": 3}
#: What the worker calls the parts of a place.
NAMES = {
    "root": "WORKER_DATA_DIR",
    "bucket": "S3_BUCKET",
    "prefix": "S3_PREFIX",
    "endpoint_url": "S3_ENDPOINT_URL",
    "region": "S3_REGION",
    "access_key_id": "BUCKET_ACCESS_KEY_ID",
    "secret_access_key": "BUCKET_SECRET_ACCESS_KEY",
    "addressing_style": "S3_ADDRESSING_STYLE",
}


class Endpoint:
    """`plane` and `store` as tests look at them, and a way to make workers and requests."""

    def __init__(self, plane: ControlPlane, place: Place, folder: Path) -> None:
        self.plane = plane
        self.store = open_place(place)
        self._place = place
        self._folder = folder

    def worker(self, worker_id: str, **settings: Any) -> Worker:
        """One that starts with `async with`; `settings` by their names in `Settings`."""
        env = {NAMES[name]: value for name, value in self._place.items() if value}
        disk = self._folder / f"disk-{worker_id}"
        chosen = PATIENT | {"scratch_dir": disk, "template": False} | settings
        env |= {f"WORKER_{name.upper()}": str(value) for name, value in chosen.items()}
        return Worker(self.plane, SCRIPT, self._folder, worker_id, env)

    def start(self, *, only: str | None = None, **params: Any) -> Job:
        """Queue a start of the kind `sleep`; the process is called like the job."""
        return self.plane.submit(start_of(**params), only=only)

    async def ask(self, action: str, *, only: str | None = None, **fields: Any) -> Reply:
        """What a worker answers to one request."""
        job = self.plane.submit({"action": action, **fields}, sync=True, only=only)
        await self.plane.finished(job.id)
        assert job.output is not None, f"{action}: {job.status} {job.error}"
        reply: Reply = job.output
        return reply

    async def record(self, process_id: str) -> Record:
        """What the store holds."""
        record = await read_record(self.store, process_id)
        assert record is not None, f"{process_id} was never stored"
        return record

    async def until(
        self, process_id: str, condition: Callable[[Record], object], seconds: float = PATIENCE
    ) -> Record:
        """Wait for something that the store shall hold."""
        async with asyncio.timeout(seconds):
            while True:
                record = await read_record(self.store, process_id)
                if record and condition(record):
                    return record
                await asyncio.sleep(0.05)

    async def running(self, process_id: str, *, step: int = 0, checkpoints: int = 0) -> Record:
        """Wait until the store knows that the process runs, and how far it has come."""
        return await self.until(
            process_id,
            lambda record: (
                record.status == "running"
                and (record.progress.step if record.progress else 0) >= step
                and len(record.checkpoints) >= checkpoints
            ),
        )

    async def close(self) -> None:
        await self.store.close()


def start_of(**params: Any) -> dict[str, Any]:
    """A start of the kind `sleep`, as callers send it."""
    return {"action": "start", "kind": "sleep", "params": params}
