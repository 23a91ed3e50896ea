"""Which GPUs each slot has, whether enough of each is free, and what attempts left behind.

Memory is told by the driver for the whole device: what another program holds is not free, and what
an attempt leaves behind, after every process of it is gone, is a leak. Of programs that were on the
device before the attempt it is known what they have taken meanwhile, where the driver tells it. Not
to be told from a leak are a program that came while the attempt ran, and, where the driver does not
tell, whatever programs outside of this worker have taken.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar

from utils import WorkerError, set_within
from worker.gpus import Driver, Gpu

log = logging.getLogger(__name__)

#: The driver is asked no longer than this; whatever hangs there, a job may still run.
ASK_SECONDS = 10.0
#: The driver frees memory some time after a process has ended.
PATIENCE_SECONDS, LOOK_AGAIN_SECONDS = 15.0, 1.0
#: Less than this is the driver's own, and comes and goes.
LEAK_BYTES = 512 << 20


class GpuMemoryShort(WorkerError):
    """A GPU has less free than the kind needs."""

    code: ClassVar[str] = "gpu_memory_short"
    retryable: ClassVar[bool] = True


class GpuShares:
    """The GPUs of this machine, divided among the slots of a worker."""

    def __init__(self, slots: int, driver: Driver | None = None) -> None:
        self._slots = slots
        self._driver = driver or Driver()
        self._in_use: Counter[str] = Counter()
        self._last_seen: list[Gpu] = []
        #: How a device was when nothing of ours ran there, by uuid.
        self._when_idle: dict[str, Gpu] = {}
        self._leaked: set[str] = set()

    @property
    def leaked(self) -> bool:
        """An attempt left memory behind, which only a new container gets back."""
        return bool(self._leaked)

    @asynccontextmanager
    async def taken(
        self, slot: int, needed_bytes: int, *, unless: asyncio.Event
    ) -> AsyncIterator[Mapping[str, str]]:
        """Use the devices of `slot` (from 0) for one attempt; yields what its environment says.

        When it is over, looks whether all of their memory came back. Waits for nothing any more
        once `unless` is set.

        Raises:
            GpuMemoryShort: `needed_bytes` are not free on each of them, nor become so.
        """
        mine = share_of(await self._devices(), self._slots, slot)
        mine = await self._with_enough_free(mine, needed_bytes, unless)
        for gpu in mine:
            if not self._in_use[gpu.uuid]:
                self._when_idle[gpu.uuid] = gpu
            self._in_use[gpu.uuid] += 1
        try:
            yield visible(mine) if self._slots > 1 else {}
        finally:
            self._in_use.subtract(gpu.uuid for gpu in mine)
            if mine:
                await self._look_for_leaks({gpu.uuid for gpu in mine}, unless)

    async def _with_enough_free(
        self, mine: list[Gpu], needed_bytes: int, unless: asyncio.Event
    ) -> list[Gpu]:
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while short := [gpu for gpu in mine if gpu.free_bytes < needed_bytes]:
            if asyncio.get_running_loop().time() > deadline:
                raise GpuMemoryShort(
                    f"{short[0].name} has {short[0].free_bytes >> 20} of "
                    f"{short[0].total_bytes >> 20} MiB free, and {needed_bytes >> 20} are needed; "
                    + self._who_holds_it(short[0])
                )
            if await set_within(unless, LOOK_AGAIN_SECONDS):
                break
            uuids = {gpu.uuid for gpu in mine}
            mine = [gpu for gpu in await self._devices() if gpu.uuid in uuids]
        return mine

    def _who_holds_it(self, gpu: Gpu) -> str:
        if self._in_use[gpu.uuid]:
            return "another attempt of this worker runs on it"
        if gpu.uuid in self._leaked:
            return "an earlier attempt left memory behind, which a new container gets back"
        return "nothing of this worker runs on it, so a program outside of it holds the rest"

    async def _look_for_leaks(self, uuids: set[str], unless: asyncio.Event) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while uuids and (missing := self._missing(await self._devices(), uuids)):
            if asyncio.get_running_loop().time() > deadline:
                for gpu, size in missing:
                    self._leaked.add(gpu.uuid)
                    log.error("%s: %d MiB did not come back after an attempt", gpu.name, size >> 20)
                return
            if await set_within(unless, LOOK_AGAIN_SECONDS):
                return  # it is being stopped, and may not be gone from the device yet

    def _missing(self, gpus: list[Gpu], uuids: set[str]) -> list[tuple[Gpu, int]]:
        """Devices where nothing of ours runs now, and the bytes that each lacks."""
        return [
            (gpu, lacking)
            for gpu in gpus
            if gpu.uuid in uuids
            and not self._in_use[gpu.uuid]
            and (lacking := unexplained(self._when_idle[gpu.uuid], gpu)) > LEAK_BYTES
        ]

    async def _devices(self) -> list[Gpu]:
        """Those that CUDA would see; as last seen while the driver does not answer."""
        seen = [*(await self._driver.look(ASK_SECONDS)).devices]
        self._last_seen = allowed(seen, os.environ.get("CUDA_VISIBLE_DEVICES")) or self._last_seen
        return self._last_seen


def unexplained(before: Gpu, now: Gpu) -> int:
    """Bytes that were free before and are not, and that no program of then has taken since."""
    others = sum(
        now.held_bytes.get(program, 0) - held for program, held in before.held_bytes.items()
    )
    return before.free_bytes - now.free_bytes - others


def allowed(gpus: list[Gpu], visible_devices: str | None) -> list[Gpu]:
    """What CUDA_VISIBLE_DEVICES leaves, which has numbers, or uuids by their beginnings."""
    if visible_devices is None:
        return gpus
    names = [name.strip() for name in visible_devices.split(",") if name.strip()]
    return [
        gpu
        for gpu in gpus
        if any(
            name == str(gpu.number) or (len(name) > 4 and gpu.uuid.startswith(name))
            for name in names
        )
    ]


def share_of(gpus: list[Gpu], slots: int, slot: int) -> list[Gpu]:
    """The devices of one slot of `slots`. Where there are fewer devices than slots, some share."""
    if len(gpus) >= slots:
        return gpus[slot::slots]
    return [gpus[slot % len(gpus)]] if gpus else []


def visible(gpus: list[Gpu]) -> dict[str, str]:
    """The environment in which CUDA sees these and no others; nothing where there are none."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus)} if gpus else {}
