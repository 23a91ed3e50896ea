"""What an attempt is at, and how long each phase of it took."""

from __future__ import annotations

import time

from records.lease import Lease
from worker.meter import Meter

#: After the last one. Nothing follows it.
ENDED = "ended"


class Phases:
    """Keeps the record's `timings` and tells the worker's meter, once for each phase that ends.

    A phase is `inputs`, `queued`, `startup`, `preparing`, `running` or `upload`.
    """

    def __init__(self, lease: Lease, meter: Meter, first: str, *, has_child: bool) -> None:
        """`has_child`: whether it is a child that runs, and not the worker itself."""
        self._lease = lease
        self._meter = meter
        self._has_child = has_child
        self._phase, self._since = first, time.monotonic()
        if lease.desired.phase != first:
            lease.report(lambda r: r.with_phase(first, lease.clock()))

    def enter(self, phase: str) -> None:
        """Close the book on the phase that ends here."""
        last, child, now = self._phase, self._child_runs, time.monotonic()
        if last == ENDED:
            return
        seconds = now - self._since
        self._phase, self._since = phase, now
        at = self._lease.clock()
        self._lease.report(lambda r: r.with_timing(last, seconds).with_phase(phase, at))
        self._meter.phase_ended(self._lease.record.kind, last, seconds, of_child=child)

    @property
    def child_seconds(self) -> float | None:
        """How long its child has been at work; None: none is."""
        return time.monotonic() - self._since if self._child_runs else None

    @property
    def _child_runs(self) -> bool:
        return self._has_child and self._phase == "running"
