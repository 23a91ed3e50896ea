"""Workers that share nothing but a store: each has a store of its own to ask, and a meter."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tests.crowd import CrowdWorker, until
from tests.faulty_s3 import FaultyS3
from tests.servers import open_place
from worker.meter import Meter

if TYPE_CHECKING:
    from pathlib import Path

    from storage import Store
    from tests.kit import Reply
    from tests.servers import Place

PRICE, GPUS = 7.2, 2


class FleetWorker(CrowdWorker):
    """Its figures, and what it really asked of its store."""

    def __init__(
        self, store: Store, meter: Meter, scratch: Path, proxy: FaultyS3 | None, **changes: Any
    ):
        super().__init__(store, scratch, meter=meter, **changes)
        self.meter = meter
        self.presence = self.handler.presence
        self._own_store = store
        self._proxy = proxy
        self._keeping: asyncio.Task[None] | None = None

    async def present(self) -> None:
        """Be there from now on; returns when this worker's figures are stored."""
        self._keeping = asyncio.create_task(self.presence.keep())
        await until(lambda: self.presence._version)

    async def figures(self) -> Reply:
        """Of this worker alone."""
        reply: Reply = (await self("metrics", scope="worker"))["this_worker"]
        return reply

    @property
    def requests(self) -> dict[str, int]:
        """By operation, counted elsewhere: by a proxy in front of the bucket, or above a folder."""
        if self._proxy is not None:
            return self._proxy.requests
        return dict(Counter(call.name for call in self.store.calls))

    async def close(self) -> None:
        if self._keeping:
            self._keeping.cancel()
        await super().close()
        await self._own_store.close()


class Fleet:
    """The workers of one endpoint."""

    def __init__(self, place: Place, scratch: Path) -> None:
        self.store = open_place(place)
        self._place, self._scratch = place, scratch
        self._proxies = ExitStack()
        self.workers: list[FleetWorker] = []

    def worker(self, **changes: Any) -> FleetWorker:
        meter = Meter(price_per_hour=PRICE, gpus=GPUS)
        name = f"worker-{len(self.workers)}"
        chosen = {"worker_id": name} | changes
        proxy, place = None, self._place
        if url := place.get("endpoint_url"):
            proxy = self._proxies.enter_context(FaultyS3(url))
            place = {**place, "endpoint_url": proxy.url}
        store = open_place(place, meter)
        worker = FleetWorker(store, meter, self._scratch / name, proxy, **chosen)
        self.workers.append(worker)
        return worker

    def heir(self, **changes: Any) -> FleetWorker:
        """One that comes much later: to it, every lease but its own has expired."""
        worker = self.worker(**({"takeover_watch_seconds": 0} | changes))
        worker.store.later_seconds = 1000
        return worker

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()
        await self.store.close()
        self._proxies.close()
