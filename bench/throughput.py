"""4. Through the unmodified SDK loop and the tests' control-plane double.

Each caller sends its next request when the last one is answered. Compares statuses of a running
process with a handler that does nothing under the same loop, and shows how long a no-op takes from
its dispatch until the caller has its result. All share the machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.figures import Figure, Goal, median, milliseconds, ratio
from bench.in_turn import bar
from bench.sdk_workers import CONCURRENCY, EMPTY, IDLE, OURS, Plane, sdk_workers

PROCESS = "p"
STATUS = {"action": "process_status", "process_id": PROCESS}
START = {"action": "start", "kind": "sleep", "params": {"seconds": 0, "steps": 1}}
#: Detached, so that it is none of the jobs that the worker takes at a time.
RUNNING = {
    "action": "start",
    "kind": "sleep",
    "process_id": PROCESS,
    "detach": True,
    "params": {"seconds": 3600, "steps": 3600},
}

#: Callers at a time, and how many requests each sends in a round of two seconds or more.
STATUSES = {1: 15, 4: 3, 16: 2, 50: 1}
STARTS = {1: 5, 16: 1}
#: Numbers of callers whose latencies are shown.
COMPARED = (1, 16)
#: A quick run sends this many times less, and no more callers than those.
QUICK = 4
GOAL = Goal(">=", 0.97)

LOOP = (
    f"both take {CONCURRENCY} jobs at a time (the worker's default: role all, 1 slot). The SDK's "
    "loop sets the pace: it sleeps 0.1 s when it has no job, and 1 s when jobs, those not begun "
    "counted twice, are as many as it takes"
)
NOTES = {
    "status": "read from the worker's RAM; writes nothing",
    "empty": "does nothing, keeps nothing",
    "start": "in a child of its own; its record goes by compare-and-swap into a folder, is forced "
    "to the disk (fsync) before it is reported (created, running, ended), and stays; if its worker "
    "dies, another one resumes it; by default one runs at a time",
}


class Taken(NamedTuple):
    """Times of one round, in seconds."""

    #: From the first request to the last answer.
    whole: float
    #: From each request to its answer.
    each: list[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.each) / self.whole


class Way(NamedTuple):
    """One kind of request, which callers send to one worker."""

    name: str
    ask: Callable[[], Awaitable[object]]
    #: Requests that each caller sends in a round, by the number of callers.
    sends: dict[int, int]
    note: str

    async def call(self, callers: int, times: int) -> Taken:
        """Run that many callers at a time; each sends `times` requests in a row."""
        each: list[float] = []
        began = time.perf_counter()
        await asyncio.gather(*(self._caller(times, each) for _ in range(callers)))
        return Taken(time.perf_counter() - began, each)

    async def _caller(self, times: int, each: list[float]) -> None:
        for _ in range(times):
            began = time.perf_counter()
            await self.ask()
            each.append(time.perf_counter() - began)


#: The rounds of a way with a number of callers.
Rounds = dict[tuple[str, int], list[Taken]]


def run(quick: bool) -> list[Figure]:
    """Answers per second, the ratio to the empty handler, and how long an answer takes."""
    return asyncio.run(_run(quick))


async def _run(quick: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        async with sdk_workers(Path(folder)) as plane:
            await plane.ask(OURS, RUNNING)
            ways = _ways(plane)
            if quick:
                ways = [way._replace(sends=_less(way.sends)) for way in ways]
            warm_up = 1 if quick else max(COMPARED)
            await asyncio.gather(*(way.call(warm_up, 1) for way in ways))
            taken = await _measure(ways, 1 if quick else 5)
    return [*_rates(ways, taken), *_latencies(ways, taken)]


def _less(sends: dict[int, int]) -> dict[int, int]:
    return {callers: -(-sends[callers] // QUICK) for callers in sends if callers <= max(COMPARED)}


def _ways(plane: Plane) -> list[Way]:
    """All ways: statuses of ours, the empty handler, starts of a no-op."""
    status, empty, start = (
        partial(plane.ask, worker, job_input)
        for worker, job_input in ((OURS, STATUS), (EMPTY, {}), (IDLE, START))
    )
    return [
        Way("process_status", status, STATUSES, NOTES["status"]),
        Way("empty handler", empty, STATUSES, NOTES["empty"]),
        Way("start of a no-op", start, STARTS, NOTES["start"]),
    ]


async def _measure(ways: list[Way], rounds: int) -> Rounds:
    """All ways in turn, every other round backwards."""
    steps = [(way, callers, sends) for way in ways for callers, sends in way.sends.items()]
    steps.sort(key=lambda step: step[1])  # what is compared follows one another
    taken: Rounds = {(way.name, callers): [] for way, callers, _ in steps}
    with bar(rounds * len(steps), "rounds of callers") as shown:
        for number in range(rounds):
            for way, callers, sends in steps[:: 1 if number % 2 else -1]:
                await way.call(1, 1)  # the SDK's loop is where it is in its sleep after a job
                taken[way.name, callers].append(await way.call(callers, sends))
                shown.update()
    return taken


def _rates(ways: list[Way], taken: Rounds) -> list[Figure]:
    status, empty, start = ways
    figures = []
    for callers in status.sends:
        ours, theirs = ([each.rate for each in taken[way.name, callers]] for way in (status, empty))
        figures += [
            median(f"process_status, {callers} callers", ours, "1/s", note=LOOP),
            median(f"empty handler, {callers} callers", theirs, "1/s", note=LOOP),
            ratio(f"rate to the empty handler's, {callers} callers", ours, theirs, goal=GOAL),
        ]
    for callers in start.sends:
        rates = [each.rate for each in taken[start.name, callers]]
        figures.append(median(f"start of a no-op, {callers} callers", rates, "1/s"))
    return figures


def _latencies(ways: list[Way], taken: Rounds) -> list[Figure]:
    return [
        milliseconds(
            f"{way.name}, {callers} callers, p50",
            [seconds for each in taken[way.name, callers] for seconds in each.each],
            note=way.note,
        )
        for way in ways
        for callers in COMPARED
    ]
