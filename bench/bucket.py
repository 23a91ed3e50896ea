"""Workers on a real bucket, whose requests are counted and, on wish, slowed down."""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from records.index import index_key
from storage import Store
from stores.s3.metering import RequestCounter
from tests.aged import ended
from tests.kit import Caller
from tests.servers import Place, open_place
from worker.meter import Meter

_AT_A_TIME = 16


class Line:
    """Requests from one worker to the bucket."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        #: Added to each request, in seconds, as a farther bucket would.
        self.delay = 0.0

    def began(self, operation: str) -> None:
        """Count and delay a request."""
        self.requests[operation] += 1
        if self.delay:
            time.sleep(self.delay)  # in the thread that asks, never on the event loop


class BucketWorker(Caller):
    """A worker with a line of its own. It does what it is asked, and nothing in the background."""

    def __init__(self, store: Store, line: Line, scratch: Path, **changes: Any) -> None:
        super().__init__(store, scratch, background=False, **changes)
        self.store = store
        self.line = line

    async def requests_of(self, action: str, **fields: Any) -> dict[str, int]:
        """What one action sends, by operation."""
        self.line.requests.clear()
        reply = await self(action, **fields)
        if "error" in reply:
            raise RuntimeError(f"{action}: {reply['error']}")
        return dict(self.line.requests)


@asynccontextmanager
async def worker_on(place: Place, folder: Path, **changes: Any) -> AsyncIterator[BucketWorker]:
    """One more worker on the bucket at `place`, once it knows what that can do."""
    line, meter = Line(), Meter()
    with _listening(line, meter):
        store = open_place(place, meter)
        try:
            await store.capabilities()
            gc.freeze()  # as a worker does when it has looked at its store
            name = f"w-{secrets.token_hex(3)}"
            yield BucketWorker(store, line, folder / name, **({"worker_id": name} | changes))
        finally:
            await store.close()


@contextmanager
def _listening(line: Line, meter: Meter) -> Iterator[None]:
    """To the requests of the one store that has this meter: other workers have theirs."""
    real = RequestCounter.began

    def began(counter: RequestCounter, operation: str, size: int) -> None:
        if counter.meter is meter:
            line.began(operation)
        real(counter, operation, size)

    with mock.patch.object(RequestCounter, "began", began):
        yield


async def seed_rows(store: Store, count: int) -> None:
    """Index rows of so many ended processes, a second apart; their records are not there."""
    turn = asyncio.Semaphore(_AT_A_TIME)

    async def put(number: int) -> None:
        async with turn:
            await store.put(index_key(ended(f"seeded-{number}", days=number / 86_400)), b"")

    await asyncio.gather(*map(put, range(count)))
