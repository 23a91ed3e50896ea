"""How this worker and its store are, right now, in words that say what to change."""

from __future__ import annotations

import platform
from importlib.metadata import version

from pydantic import JsonValue

from process_manager import ProcessManager
from settings import Settings
from storage import Capabilities, Store, StoreHealth
from utils import WorkerError


async def health(store: Store, manager: ProcessManager, settings: Settings) -> dict[str, JsonValue]:
    """A live round trip to the store, what the store can do, and what this worker is at.

    `status`: `broken` (the store does not work), `degraded` (it lacks something, see
    `store.degraded`), `draining`, `busy` (no slot is free) or `ready`.
    """
    checked = await store.check()
    capabilities = await _capabilities(store) if checked.ok else None
    running, queued = manager.running_and_queued()
    return {
        "status": _status(checked, capabilities, manager, busy=running >= settings.slots),
        "worker_id": settings.worker_id,
        "role": settings.role,
        "slots": settings.slots,
        "running": running,
        "queued": queued,
        "store": {
            "url": store.url,
            "ok": checked.ok,
            "message": checked.message,
            "round_trip_ms": checked.round_trip_ms,
            "clock_offset_seconds": checked.clock_offset_seconds,
            "capabilities": _shown(capabilities),
            "degraded": [*capabilities.degraded] if capabilities else [],
        },
        "versions": {"python": platform.python_version(), "runpod": version("runpod")},
    }


async def _capabilities(store: Store) -> Capabilities | None:
    """None if the store fell away just now."""
    try:
        return await store.capabilities()
    except WorkerError:
        return None


def _status(
    checked: StoreHealth, capabilities: Capabilities | None, manager: ProcessManager, *, busy: bool
) -> str:
    if not checked.ok or capabilities is None:
        return "broken"
    if manager.draining:
        return "draining"
    if capabilities.degraded:
        return "degraded"
    return "busy" if busy else "ready"


def _shown(capabilities: Capabilities | None) -> JsonValue:
    if capabilities is None:
        return None
    return {
        "conditional_writes": capabilities.conditional_writes,
        "presign": capabilities.presign,
        "multi_delete": capabilities.multi_delete,
    }
