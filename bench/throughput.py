"""4. Through the unmodified SDK loop and the tests' control-plane double.

Callers that each send their next request when the last is answered: statuses of a running process,
beside a handler that does nothing under the same loop; and what dispatching a no-op costs there, in
Celery and in SAQ, from its sending to its result with the caller. All share the machine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.dispatches import Calling, Taken, calling
from bench.figures import Figure, Goal, median, milliseconds, ratio
from bench.in_turn import bar
from bench.queues import EVERYSEC, POLL_SECONDS, celery, redis_server, saq
from bench.sdk_workers import CONCURRENCY, EMPTY, IDLE, OURS, sdk_workers

PROCESS = "p"
STATUS = {"action": "process_status", "process_id": PROCESS}
START = {"action": "start", "kind": "sleep", "params": {"seconds": 0, "steps": 1}}
#: Detached, so that it is none of the jobs that the worker takes at a time.
RUNNING = {"action": "start", "kind": "sleep", "process_id": PROCESS, "detach": True,
           "params": {"seconds": 3600, "steps": 3600}}  # fmt: skip

#: Callers at a time, and how many each sends in a round: for two seconds, or some more.
STATUSES = {1: 15, 4: 3, 16: 2, 50: 1}
STARTS = {1: 5, 16: 1}
QUEUED = {1: 60, 16: 20}
#: Callers of what the table compares.
COMPARED = (1, 16)
#: A quick run sends so much less, has no more callers than the table, and one Redis and one pool.
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
    "celery": "as by default acknowledged before it runs (acks_late off), so that a worker that "
    "dies loses it; its result stays for a day",
    "saq": f"its `apply` looks for the result each {1000 * POLL_SECONDS:g} ms (by default 500); "
    "listed as active while it runs; if its worker dies it is aborted, and by default (retries=1) "
    "not run again; its result stays for 10 minutes",
    "memory": "all of it in Redis' memory, lost with it",
    "AOF": "Redis hands each write to the system and forces it to the disk once a second "
    "(appendfsync everysec): a machine that dies loses the last second or two",
}


class Redis(NamedTuple):
    """A server for Celery and SAQ."""

    #: What it does with what it is given.
    kept: str
    options: tuple[str, ...]
    #: Celery's.
    pools: tuple[str, ...]


SERVERS = (
    Redis("memory", (), ("prefork", "threads")),
    Redis("AOF", EVERYSEC, ("prefork",)),
)
QUICK_SERVERS = (Redis("memory", (), ("prefork",)),)


class Way(NamedTuple):
    """A way to have something done."""

    name: str
    calling: Calling
    #: How many each of so many callers sends in a round.
    sends: dict[int, int]
    note: str


#: By the name of a way and the number of callers: what each round took.
Rounds = dict[tuple[str, int], list[Taken]]


def run(quick: bool) -> list[Figure]:
    """Answers per second, the ratio to the empty handler, and the table."""
    return asyncio.run(_run(quick))


async def _run(quick: bool) -> list[Figure]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = await _ways(stack, folder, QUICK_SERVERS if quick else SERVERS)
        if quick:
            ways = [way._replace(sends=_less(way.sends)) for way in ways]
        warm_up = 1 if quick else max(COMPARED)
        await asyncio.gather(*(way.calling(warm_up, 1) for way in ways))
        taken = await _measure(ways, 1 if quick else 5)
    return [*_statuses(ways[0], taken), *_table(ways, taken)]


def _less(sends: dict[int, int]) -> dict[int, int]:
    return {callers: -(-sends[callers] // QUICK) for callers in sends if callers <= max(COMPARED)}


async def _ways(stack: AsyncExitStack, folder: Path, servers: Sequence[Redis]) -> list[Way]:
    """All of them, started: the first is that of statuses."""
    plane = await stack.enter_async_context(sdk_workers(folder))
    status, empty, start = (
        calling(partial(plane.ask, worker, job_input))
        for worker, job_input in ((OURS, STATUS), (EMPTY, {}), (IDLE, START))
    )
    ways = [
        Way("process_status", status, STATUSES, NOTES["status"]),
        Way("empty handler", empty, STATUSES, NOTES["empty"]),
        Way("start", start, STARTS, NOTES["start"]),
    ]
    for kept, options, pools in servers:
        url = stack.enter_context(redis_server(*options))
        for pool in pools:
            callers = stack.enter_context(celery(url, pool, folder, max(QUEUED)))
            note = f"{NOTES['celery']}; {NOTES[kept]}"
            ways.append(Way(f"Celery ({pool}, {kept})", callers, QUEUED, note))
        callers = await stack.enter_async_context(saq(url, folder))
        ways.append(Way(f"SAQ ({kept})", callers, QUEUED, f"{NOTES['saq']}; {NOTES[kept]}"))
    await plane.ask(OURS, RUNNING)
    return ways


async def _measure(ways: list[Way], rounds: int) -> Rounds:
    """All ways in turn, every other round backwards."""
    steps = [(way, callers, sends) for way in ways for callers, sends in way.sends.items()]
    steps.sort(key=lambda step: step[1])  # what is compared follows one another
    taken: Rounds = {(way.name, callers): [] for way, callers, _ in steps}
    with bar(rounds * len(steps), "rounds of callers") as shown:
        for number in range(rounds):
            for way, callers, sends in steps[:: 1 if number % 2 else -1]:
                await way.calling(1, 1)  # the SDK's loop is where it is in its sleep after a job
                taken[way.name, callers].append(await way.calling(callers, sends))
                shown.update()
    return taken


def _rates(taken: list[Taken]) -> list[float]:
    return [each.rate for each in taken]


def _statuses(way: Way, taken: Rounds) -> list[Figure]:
    figures = []
    for callers in way.sends:
        ours = _rates(taken["process_status", callers])
        empty = _rates(taken["empty handler", callers])
        figures += [
            median(f"process_status, {callers} callers", ours, "1/s", note=LOOP),
            median(f"empty handler, {callers} callers", empty, "1/s", note=LOOP),
            ratio(f"rate to the empty handler's, {callers} callers", ours, empty, goal=GOAL),
        ]
    return figures


def _table(ways: list[Way], taken: Rounds) -> list[Figure]:
    figures = []
    for way in ways:
        for callers in COMPARED:
            rounds = taken[way.name, callers]
            name = f"{way.name}, {callers} at a time"
            latencies = [seconds for each in rounds for seconds in each.each]
            figures += [
                median(f"no-op: {name}", _rates(rounds), "1/s", note=way.note),
                milliseconds(f"no-op: {name}, p50", latencies, note=way.note),
            ]
    return figures
