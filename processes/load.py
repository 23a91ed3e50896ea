"""What this worker is at, this moment."""

from __future__ import annotations

from collections.abc import Mapping

from meter import Load
from processes.run import ProcessRun
from processes.worker import Worker


def load_of(worker: Worker, runs: Mapping[str, ProcessRun]) -> Load:
    """`runs` are the processes that live here, by id."""
    wanting = sum(run.wants_slot for run in runs.values())
    running = worker.slots.taken
    at_work = [(run.lease.record.kind, run.phases.child_seconds) for run in runs.values()]
    return Load(
        running=running,
        queued=wanting - running,
        slots=worker.settings.slots,
        busy_seconds=worker.slots.busy_seconds,
        children=tuple((kind, seconds) for kind, seconds in at_work if seconds is not None),
    )
