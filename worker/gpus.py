"""What the driver says of the GPUs: device-wide, for all programs on them, without torch.

Memory that this process could free or has cached is none of it: what counts for the next child is
what the device has left for everybody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import pynvml
from pydantic import JsonValue


class Gpu(NamedTuple):
    """One device. Memory in bytes, as the driver counts it for the whole device."""

    #: The driver's number for it, from 0.
    number: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    #: Percent of the last moments in which it computed; None where the driver does not tell.
    busy_percent: int | None
    #: What each program on it holds, by the driver's number for the program, which in a container
    #: is not its own. Empty where the driver does not tell.
    held_bytes: Mapping[int, int] = MappingProxyType({})

    def as_json(self) -> dict[str, JsonValue]:
        """For replies, without the numbers of other people's programs."""
        return {name: value for name, value in self._asdict().items() if name != "held_bytes"}


class Gpus(NamedTuple):
    """The GPUs of this machine."""

    devices: tuple[Gpu, ...] = ()
    driver: str | None = None
    #: The newest CUDA that the driver speaks, as `13.0`.
    cuda: str | None = None
    #: Why the driver could not be asked; None where there is none, too.
    error: str | None = None

    def as_json(self) -> JsonValue:
        """For replies."""
        return {**self._asdict(), "devices": [gpu.as_json() for gpu in self.devices]}


class Driver:
    """Asks the driver in a thread of its own, one question at a time.

    A driver that hangs keeps that thread for ever, and nobody else.
    """

    def __init__(self, see: Callable[[], Gpus] | None = None) -> None:
        self._see = see or see_gpus
        self._asked: Future[Gpus] | None = None

    async def look(self, seconds: float) -> Gpus:
        """What it says; that it hangs, if it does not answer in time."""
        asked = self._ask()
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(asyncio.wrap_future(asked))
        except TimeoutError:
            return Gpus(error=f"the GPUs' driver did not answer within {seconds:g} s")

    def _ask(self) -> Future[Gpus]:
        if self._asked is None or self._asked.done():
            asked: Future[Gpus] = Future()
            self._asked = asked

            def answer() -> None:
                try:
                    asked.set_result(self._see())
                except Exception as error:  # noqa: BLE001 - whatever a driver's library raises
                    asked.set_result(Gpus(error=f"the GPUs' driver cannot be asked: {error!r}"))

            threading.Thread(target=answer, name="gpu-driver", daemon=True).start()
        return self._asked


def see_gpus() -> Gpus:
    """Ask the driver. Blocking, some milliseconds; a driver that hangs hangs this too."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Gpus()
    except pynvml.NVMLError as error:
        return Gpus(error=f"the GPU's driver does not answer: {error}")
    try:
        return _ask()
    except pynvml.NVMLError as error:
        return Gpus(error=f"a GPU does not answer: {error}")
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _ask() -> Gpus:
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    count = pynvml.nvmlDeviceGetCount()
    return Gpus(
        devices=tuple(_device(index) for index in range(count)),
        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def _device(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    busy = None
    with suppress(pynvml.NVMLError):  # virtual GPUs do not tell
        busy = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return Gpu(
        number=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        busy_percent=busy,
        held_bytes=_held(handle),
    )


def _held(handle: Any) -> dict[int, int]:
    with suppress(pynvml.NVMLError):
        programs = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return {program.pid: int(program.usedGpuMemory or 0) for program in programs}
    return {}


def _text(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
