"""What tests of the worker share: settings with short times, and a caller's requests."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any

from rp_handler import Handler
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storage import Store
    from worker.meter import Meter
    from worker.redaction import Redactor

Reply = dict[str, Any]


def settings(scratch: Path, **changes: Any) -> Settings:
    """Settings of one worker on this machine, with times that suit a test.

    The lease is the shortest that whole seconds of a store's clock can tell from a heartbeat.
    """
    quick: dict[str, Any] = {
        "scratch_dir": scratch,
        "template": False,
        "worker_id": f"w-{secrets.token_hex(3)}",
        "heartbeat_seconds": 0.5,
        "lease_seconds": 3,
        "takeover_watch_seconds": 1,
        "progress_write_seconds": 0.2,
        "cancel_poll_seconds": 0.2,
        "cancel_grace_seconds": 2,
        "grace_seconds": 6,
        "store_patience_seconds": 5,
    }
    return Settings(**(quick | changes))


class Caller:
    """Sends requests to a handler as RunPod would, and reads what comes back."""

    def __init__(
        self,
        store: Store,
        scratch: Path,
        *,
        redactor: Redactor | None = None,
        meter: Meter | None = None,
        background: bool = True,
        **changes: Any,
    ) -> None:
        """Without `background` it does what it is asked and nothing else: for counting requests."""
        self.settings = settings(scratch, **changes)
        self.handler = Handler(store, self.settings, way_in="api", redactor=redactor, meter=meter)
        self.handler._set_up = not background
        self.manager = self.handler.manager

    async def __call__(self, action: str, /, job_id: str | None = None, **fields: Any) -> Reply:
        """The reply to one request, with `error` read from its JSON."""
        request = {"action": action, **fields}
        reply = await self.handler(
            {"id": job_id or f"job-{secrets.token_hex(4)}", "input": request}
        )
        if "error" in reply:
            reply["error"] = json.loads(reply["error"])
        json.dumps(reply)  # whatever it is, RunPod can send it
        return reply

    async def start(self, process_id: str, /, job_id: str | None = None, **params: Any) -> Reply:
        """Run the kind `sleep` to its end."""
        return await self(
            "start", job_id or process_id, kind="sleep", process_id=process_id, params=params
        )

    async def until(self, process_id: str, condition: Callable[[Reply], object]) -> Reply:
        """Poll a process until its view meets the condition."""
        while True:
            view = await self("process_status", process_id=process_id)
            if view["status"] != "not_found" and condition(view):
                return view
            await asyncio.sleep(0.02)

    async def seen(self, process_id: str, /, *statuses: str, step: int = 0) -> Reply:
        """Wait until the process has one of `statuses`, and is at `step` at least."""
        return await self.until(
            process_id,
            lambda view: (
                view["status"] in statuses and (view["progress"] or {"step": 0})["step"] >= step
            ),
        )
