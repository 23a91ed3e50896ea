"""How this worker and its store are, right now, in words that say what to change."""

from __future__ import annotations

import asyncio

from pydantic import JsonValue

from health.checks import (
    Disk,
    Examined,
    Finding,
    GpuWatch,
    ask_store,
    judge_mount,
    see_disk,
    try_compute,
    try_disk,
)
from health.foreign import foreign_objects, judge_foreign
from health.versions import API, versions
from process_manager import ProcessManager
from storage import Capabilities, Store
from worker import volume
from worker.gpus import Gpus
from worker.settings import Settings


class Examiner:
    """Runs the checks of one worker."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        #: A `control` worker runs no jobs, so no GPU is missed there.
        self._runs_jobs = settings.role != "control"
        self._gpus = GpuWatch(role=settings.role)
        self.store_url = store.url

    async def examine(self, *, deep: bool = False, compute: bool = True) -> Examined:
        """Everything that could keep this worker from its work. Never raises.

        `deep`: the store's abilities are tried anew, and every GPU computes; takes seconds.
        `compute`: unless a job has the GPU, whose memory that would take.
        """
        # First, while `compute` is still true; and not beside the store's trial, which it slows.
        tried = (await try_compute(),) if deep and compute and self._runs_jobs else ()
        (health, capabilities, of_store), (gpus, disk, of_machine) = await asyncio.gather(
            ask_store(self._store, deep=deep), self._look_at_machine()
        )
        foreign = await foreign_objects(self._store, deep=deep) if health.ok else ()
        findings = (*of_store, *judge_foreign(foreign), *of_machine, *tried)
        return Examined(findings, health, capabilities, gpus, disk, foreign)

    async def examine_machine(self) -> tuple[Finding, ...]:
        """What can be told without the store."""
        return (await self._look_at_machine())[2]

    async def _look_at_machine(self) -> tuple[Gpus, Disk, tuple[Finding, ...]]:
        scratch, settings = self._settings.scratch_dir, self._settings
        written = await asyncio.to_thread(try_disk, scratch, settings.min_free_bytes)
        mount = await asyncio.to_thread(volume.mounted)
        is_needed = not settings.bucket and settings.data_dir is None
        gpus, of_gpus = await self._gpus.look()
        disk = await asyncio.to_thread(see_disk, scratch)
        return gpus, disk, (written, *judge_mount(mount, is_needed=is_needed), *of_gpus)


async def health(
    examiner: Examiner, manager: ProcessManager, settings: Settings, *, deep: bool
) -> dict[str, JsonValue]:
    """What `Examiner` found, and what this worker is at.

    `status`: `broken` (it can do no job; `reasons` say why), `draining`, `degraded` (it lacks
    something), `busy` (no slot is free) or `ready`.
    """
    running, queued = manager.running_and_queued()
    examined = await examiner.examine(deep=deep, compute=not running)
    store, capabilities = examined.store, examined.capabilities
    return {
        "status": _status(examined, manager, busy=running >= settings.slots),
        "reasons": [{**f._asdict()} for f in examined.findings if f.verdict != "ok"],
        "worker_id": settings.worker_id,
        "role": settings.role,
        "slots": settings.slots,
        "running": running,
        "queued": queued,
        "no_progress": [*manager.lookup.without_progress()],
        "store": {
            "url": examiner.store_url,
            "ok": store.ok,
            "message": store.message,
            "round_trip_ms": None if (took := store.round_trip_ms) is None else round(took, 1),
            "clock_offset_seconds": store.clock_offset_seconds,
            "capabilities": _shown(capabilities),
            "degraded": [*capabilities.degraded] if capabilities else [],
            "foreign_objects": [*examined.foreign],
        },
        "disk": {**examined.disk._asdict()},
        "gpu": examined.gpus.as_json(),
        "api": API,
        "versions": {**versions()},
    }


def _status(examined: Examined, manager: ProcessManager, *, busy: bool) -> str:
    if examined.verdict == "broken":
        return "broken"
    if manager.draining:
        return "draining"
    if examined.verdict == "degraded":
        return "degraded"
    return "busy" if busy else "ready"


def _shown(capabilities: Capabilities | None) -> JsonValue:
    if capabilities is None:
        return None
    return {name: can for name, can in capabilities._asdict().items() if name != "degraded"}
