"""Workers that share nothing but a store: each has a store of its own to ask, and a meter."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from stores import s3_requests
from tests.crowd import CrowdWorker, until
from tests.servers import open_place
from worker.meter import Meter

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from storage import Store
    from tests.kit import Reply
    from tests.servers import Place

PRICE, GPUS = 7.2, 2


class FleetWorker(CrowdWorker):
    """Its figures, and what it really asked of its store."""

    def __init__(self, store: Store, meter: Meter, scratch: Path, sent: Sent, **changes: Any):
        super().__init__(store, scratch, meter=meter, **changes)
        self.meter = meter
        self.presence = self.handler.presence
        self._own_store = store
        self._sent = sent
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
        """By operation, counted by somebody else: where botocore sends, or above a folder."""
        if "S3" in type(self._own_store).__name__:
            return dict(self._sent.by_meter[id(self.meter)])
        return dict(Counter(call.name for call in self.store.calls))

    async def close(self) -> None:
        if self._keeping:
            self._keeping.cancel()
        await super().close()
        await self._own_store.close()


class Fleet:
    """The workers of one endpoint."""

    def __init__(self, place: Place, scratch: Path, sent: Sent) -> None:
        self.store = open_place(place)
        self._place, self._scratch, self._sent = place, scratch, sent
        self.workers: list[FleetWorker] = []

    def worker(self, **changes: Any) -> FleetWorker:
        meter = Meter(price_per_hour=PRICE, gpus=GPUS)
        name = f"worker-{len(self.workers)}"
        chosen = {"worker_id": name} | changes
        store = open_place(self._place, meter)
        worker = FleetWorker(store, meter, self._scratch / name, self._sent, **chosen)
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


class Sent:
    """Requests by operation, of all clients that are made from here on, for each meter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_meter: dict[int, Counter[str]] = {}
        real = s3_requests.new_client

        def new_client(*arguments: Any) -> Any:
            requests = self.by_meter.setdefault(id(arguments[-1]), Counter())

            def count(event_name: str, **_: Any) -> None:
                requests[event_name.rpartition(".")[2]] += 1

            client = real(*arguments)
            client.meta.events.register("before-send.s3", count)
            return client

        monkeypatch.setattr(s3_requests, "new_client", new_client)
