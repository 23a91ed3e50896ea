"""Which RunPod job holds a process, remembered on this machine.

A process that no worker has taken yet is known to nothing but its job. One small file per process,
so that several commands at a time do not meet.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import platformdirs


class RememberedJobs:
    """The jobs of the processes of one endpoint."""

    def __init__(self, endpoint: str, root: Path | None = None) -> None:
        name = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
        self._folder = (root or platformdirs.user_state_path("podjobs")) / "jobs" / name

    def remember(self, process_id: str, job_id: str) -> None:
        """Keep the job's id. A disk that refuses costs only the shortcut."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / process_id).write_text(job_id, encoding="utf-8")

    def job_of(self, process_id: str) -> str | None:
        """The job that was sent last for this process; None if none was sent from here."""
        with suppress(OSError, ValueError):
            return (self._folder / process_id).read_text(encoding="utf-8") or None
        return None

    def forget(self, process_id: str) -> None:
        """Remove what is kept about a process."""
        with suppress(OSError):
            (self._folder / process_id).unlink(missing_ok=True)
