"""Callers that each send their next when the last is answered, whatever it is that they send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import NamedTuple


class Taken(NamedTuple):
    """What callers saw, in seconds."""

    #: From the first that was sent to the last that was answered.
    whole: float
    #: Of each, from its sending to its answer.
    each: list[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.each) / self.whole


#: `callers` at a time, each with so many in a row.
Calling = Callable[[int, int], Awaitable[Taken]]


def calling(one: Callable[[], Awaitable[object]]) -> Calling:
    """Callers that are tasks."""

    async def caller(times: int, each: list[float]) -> None:
        for _ in range(times):
            began = time.perf_counter()
            await one()
            each.append(time.perf_counter() - began)

    async def call(callers: int, times: int) -> Taken:
        each: list[float] = []
        began = time.perf_counter()
        await asyncio.gather(*(caller(times, each) for _ in range(callers)))
        return Taken(time.perf_counter() - began, each)

    return call


def calling_in(threads: Executor, one: Callable[[], object]) -> Calling:
    """Callers that are threads, because `one` blocks."""

    def caller(times: int) -> list[float]:
        each = []
        for _ in range(times):
            began = time.perf_counter()
            one()
            each.append(time.perf_counter() - began)
        return each

    async def call(callers: int, times: int) -> Taken:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        lists = [loop.run_in_executor(threads, caller, times) for _ in range(callers)]
        each = [seconds for some in await asyncio.gather(*lists) for seconds in some]
        return Taken(time.perf_counter() - began, each)

    return call
