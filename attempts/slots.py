"""How many processes a worker runs at a time, and who waits for how long a queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """A fixed number of places, given out in the order in which they were asked for."""

    def __init__(self, count: int) -> None:
        self._semaphore = asyncio.Semaphore(count)
        #: How many places are given out.
        self.taken = 0
        self._busy_seconds = self._busy_since = 0.0
        self._waiting: dict[str, None] = {}  # a dict keeps the order of arrival
        self._free = list(range(count))

    @property
    def busy_seconds(self) -> float:
        """How long at least one place was given out, so far."""
        now = time.monotonic() if self.taken else self._busy_since
        return self._busy_seconds + now - self._busy_since

    def position(self, process_id: str) -> int | None:
        """1 for the next in line, None for one that does not wait."""
        if process_id not in self._waiting:
            return None
        return list(self._waiting).index(process_id) + 1

    @asynccontextmanager
    async def taken_by(
        self, process_id: str, *, unless: asyncio.Event
    ) -> AsyncIterator[int | None]:
        """Hold a place, told by its number from 0; None: `unless` was set before there was one."""
        self._waiting[process_id] = None
        place = asyncio.create_task(self._semaphore.acquire())
        call_off = asyncio.create_task(unless.wait())
        try:
            await asyncio.wait([place, call_off], return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._waiting[process_id]
            call_off.cancel()
            if not place.done():
                place.cancel()
            await asyncio.gather(place, call_off, return_exceptions=True)
        if place.cancelled():
            yield None
            return
        self._count(+1)
        number = self._free.pop(0)
        try:
            yield number
        finally:
            self._free.insert(0, number)
            self._count(-1)
            self._semaphore.release()

    def _count(self, change: int) -> None:
        self._busy_seconds, self._busy_since = self.busy_seconds, time.monotonic()
        self.taken += change
