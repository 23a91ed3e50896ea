"""Several workers in one test: each with a disk and a line to the store of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from process_manager import Start
from records.keys import record_key
from records.record import Record, Status
from storage import ObjectNotFound
from tests.faulty_store import FaultyStore
from tests.kit import Caller, Reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storage import Store

on_every_store = pytest.mark.parametrize("crowd", ["local", "ceph"], indirect=True)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells of."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def start_of(process_id: str, job_id: str | None = None, **params: Any) -> Start:
    """What the handler makes of a start of the kind `sleep`."""
    return Start(process_id, "sleep", params, params, {}, runpod_job_id=job_id or process_id)


class CrowdWorker(Caller):
    """A worker whose line to the store a test can cut, slow down and listen to."""

    def __init__(self, store: Store, scratch: Path, **changes: Any) -> None:
        self.store = FaultyStore(store)
        super().__init__(self.store, scratch, background=False, **changes)
        self.held: list[asyncio.Task[Reply]] = []

    def starts(self, process_id: str, /, job_id: str | None = None, **params: Any) -> Any:
        """Begin a delivery and go on. Returns its task, whose result is the reply."""
        task = asyncio.create_task(self.start(process_id, job_id, **params))
        self.held.append(task)
        return task

    async def running(self, process_id: str, /, step: int = 0, **params: Any) -> Any:
        """A long process that is at `step`, and the task of its delivery."""
        task = self.starts(process_id, **({"seconds": 60, "steps": 600} | params))
        await self.seen(process_id, "running", step=step)
        return task

    async def die(self) -> None:
        """Like kill -9: nothing more leaves it, its children are dead, nobody is told."""
        self.store.freeze()
        for run in self.runs():
            if child := run._child:
                await child.kill()
        cache, work = self.manager.leases.cache, self.manager.parts.workplace
        for place in (cache._place, work):  # the kernel drops their locks
            if place._claimed:
                place._let_go()

    async def awake(self) -> None:
        """Like SIGCONT after a SIGSTOP, for a worker whose store was frozen."""
        self.store.thaw()

    def runs(self) -> list[Any]:
        return list(self.manager.runs)

    def children(self) -> list[Any]:
        return [run._child for run in self.runs() if run._child]

    async def close(self) -> None:
        self.store.away = True
        self.store.thaw()
        for run in self.runs():
            run.task.cancel()
        for task in self.held:
            task.cancel()
        await asyncio.gather(*self.held, return_exceptions=True)


class Crowd:
    """The workers of one endpoint."""

    def __init__(self, store: Store, scratch: Path) -> None:
        #: The store as nobody disturbs it.
        self.store = store
        self._scratch = scratch
        self._workers: list[CrowdWorker] = []

    def worker(self, name: str = "", /, **changes: Any) -> CrowdWorker:
        """One more. The same `name` is the same disk."""
        name = name or f"worker-{len(self._workers)}"
        worker = CrowdWorker(self.store, self._scratch / name, **({"worker_id": name} | changes))
        self._workers.append(worker)
        return worker

    def heir(self, **changes: Any) -> CrowdWorker:
        """One that comes much later: to it, every lease but its own has expired."""
        worker = self.worker(**({"takeover_watch_seconds": 0} | changes))
        worker.store.later_seconds = 1000
        return worker

    async def record(self, process_id: str) -> Record:
        """What the store holds."""
        stored = await self.store.get(record_key(process_id))
        return Record.model_validate_json(stored.data)

    async def stored(self, process_id: str, *statuses: Status | str) -> Record:
        """What the store holds, once it has one of these statuses."""
        return await self.record_when(process_id, lambda record: record.status in statuses)

    async def record_when(self, process_id: str, condition: Callable[[Record], object]) -> Record:
        """What the store holds, once it is there and meets the condition."""
        while True:
            with suppress(ObjectNotFound):
                record = await self.record(process_id)
                if condition(record):
                    return record
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        for worker in self._workers:
            await worker.close()
        await self.store.close()
