"""One attempt of a job, run as a plain function in this process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from child.context import JobContext

if TYPE_CHECKING:
    from pathlib import Path


class JobAttempt:
    """An attempt in a folder of its own: hears its events, and can ask it to stop at a step."""

    def __init__(self, folder: Path, *, resume_from: Path | None = None) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.stop = threading.Event()
        self.stop_at: int | None = None
        self.context = JobContext(
            folder, emit=self.hear, stop=self.stop, resume_from=resume_from, device="cpu"
        )

    def hear(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "progress" and event["step"] == self.stop_at:
            self.stop.set()

    def named(self, event: str) -> list[dict[str, Any]]:
        return [heard for heard in self.events if heard["event"] == event]

    def outputs(self) -> dict[str, bytes]:
        root = self.context.outputs
        files = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    def last_checkpoint(self) -> Path:
        (checkpoint,) = (self.folder / self.named("checkpoint")[-1]["path"]).iterdir()
        return checkpoint
