"""The attempts that run on this worker, by process id."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from attempts.run import AttemptParts, ProcessRun, StopReason
from records.delivery import Start
from records.lease import Lease
from worker.meter import Load

#: How much of the grace period a drain may take; the rest is for replies that are under way.
DRAIN_SHARE = 0.9


class Runs:
    """Begins attempts on this worker and knows them until they have cleared up."""

    def __init__(self, parts: AttemptParts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._runs: dict[str, ProcessRun] = {}
        #: Processes whose record is being created; each will want a slot.
        self._beginning = 0
        self.draining = False

    def get(self, process_id: str) -> ProcessRun | None:
        """The attempt at this process, also one that has ended and is clearing up."""
        return self._runs.get(process_id)

    def held(self, process_id: str) -> ProcessRun | None:
        """The attempt that may speak for the process: not one that has lost its lease."""
        run = self._runs.get(process_id)
        return run if run and not run.lease.lost.is_set() else None

    def __iter__(self) -> Iterator[ProcessRun]:
        return iter(list(self._runs.values()))

    def begin(self, lease: Lease, start: Start) -> ProcessRun:
        """Begin the attempt that `lease` was taken for."""
        self._parts.meter.attempt_began(lease.record.kind)
        run = ProcessRun(self._parts, lease, start)
        self._runs[run.process_id] = run
        run.task.add_done_callback(lambda _: self._forget(run))
        if self.draining:
            run.stop(StopReason.DRAIN)
        return run

    def _forget(self, run: ProcessRun) -> None:
        if self._runs.get(run.process_id) is run:  # a later attempt may have taken its place
            del self._runs[run.process_id]

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Count a process that is being created among those that want a slot."""
        self._beginning += 1
        try:
            yield
        finally:
            self._beginning -= 1

    @property
    def busy(self) -> bool:
        """Whether every slot is taken or wanted."""
        wanted = sum(run.wants_slot for run in self) + self._beginning
        return wanted >= self._settings.slots

    def load(self) -> Load:
        """How many processes run and wait here, and how long their children have been running."""
        running = self._parts.slots.taken
        at_work = [(run.lease.record.kind, run.phases.child_seconds) for run in self]
        return Load(
            running=running,
            queued=sum(run.wants_slot for run in self) - running,
            slots=self._settings.slots,
            busy_seconds=self._parts.slots.busy_seconds,
            children=tuple((kind, seconds) for kind, seconds in at_work if seconds is not None),
        )

    async def drain(self) -> None:
        """Stop every attempt so that another worker can resume its process. Bounded in time."""
        self.draining = True
        runs = list(self)
        for run in runs:
            run.stop(StopReason.DRAIN)
        if runs:
            patience = self._settings.grace_seconds * DRAIN_SHARE
            await asyncio.wait([run.task for run in runs], timeout=patience)
