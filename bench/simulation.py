"""12. Past one machine: a million processes a day on ten thousand workers, computed.

What each part of a worker's day costs is measured (`bench.life`), one by one and exact; what a day
costs follows from that and the worker's own settings. The list, the cleaner and presence are the
real ones, at a store that has ten million processes in name only (`bench.many_keys`). What it
means is in `docs/scale.md`.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from bench.ceph import section_ceph
from bench.figures import Figure, Goal, count
from bench.in_turn import bar
from bench.life import POLLS, SLOW, Costs, Requests, measure
from bench.many_keys import ManyProcesses
from health.presence import Presence
from process_manager import new_leases
from records.index import read_rows
from records.lease import Leases
from retention.clean_run import AT_ONCE, CleanReport, CleanRun
from retention.cleaner import clean
from retention.last_clean import LastClean
from retention.sweep import pace, sweep_processes
from tests.kit import settings
from utils import utc_now
from worker.meter import Meter
from worker.settings import Settings

DAY, HOURS = 86_400, 24
PROCESSES_A_DAY, WORKERS = 1_000_000, 10_000
#: How long a process runs, and how often a worker starts in a day.
RUN_SECONDS, STARTS_A_DAY = 600, 4
SMALL, LARGE = 100_000, 10_000_000
EXPIRED = 1_000
#: Round trips that the cleaner makes for one batch, one after the other: GET, erase, LIST, delete
#: files, put rows, delete rows. How long one takes is assumed.
TRIPS, TRIP_SECONDS = 6, 0.03
#: And that the sweep makes for one batch: GET, LIST of its rows. It is measured over so many runs.
SWEEP_TRIPS, SWEEPS = 2, 10
#: Keys under `index/` that a process writes and removes, and that its clean-up removes.
ROWS_WRITTEN, ROWS_REMOVED = 3 + 2, 6
#: Of one partition of a bucket, per second.
WRITES_LIMIT, READS_LIMIT = 3_500, 5_500
READS = {"GetObject", "HeadObject"}
DELETES = {"DeleteObject", "DeleteObjects"}


class Prices(NamedTuple):
    """USD for a million requests, as published; docs/scale.md says where."""

    write: float
    read: float
    #: That are asked nothing for.
    free: frozenset[str]


PRICES = {
    "S3": Prices(5.00, 0.40, frozenset(DELETES)),
    "R2": Prices(4.50, 0.36, frozenset({"DeleteObject"})),
}


def run(quick: bool) -> list[Figure]:
    """Counts are exact; the rest follows from them, and from what is assumed above."""
    with tempfile.TemporaryDirectory() as folder, section_ceph() as server:
        costs = asyncio.run(measure(server, Path(folder)))
        listed, cleaned, swept = asyncio.run(_simulate(Path(folder), quick=quick))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return [
        *_measured(costs),
        *listed,
        *_a_day(parts_of_a_day(costs, cleaned, swept)),
        Figure("memory that this took", peak, "MB", goal=Goal("<=", 500)),
    ]


# ---- a day, computed


def parts_of_a_day(
    costs: Costs, clean_up: Mapping[str, float], sweep: Mapping[str, float]
) -> dict[str, Counter[str]]:
    """Requests of a day by what they are for. `clean_up`: those of one process that expires;
    `sweep`: those of a day, on average of a round."""
    every = {name: Settings.model_fields[name].default for name in Settings.model_fields}
    beats = RUN_SECONDS / every["progress_write_seconds"]
    looks = RUN_SECONDS / every["cancel_poll_seconds"]
    starts = costs.probe + costs.start_up
    starts["ListObjectsV2"] += -(-WORKERS // 1000) - 1  # pages of workers beyond the first
    turns = WORKERS * DAY / every["presence_seconds"]
    cleaner_looks = WORKERS * DAY / every["clean_seconds"]
    return {
        "begin and end": _times(costs.process, PROCESSES_A_DAY),
        "heartbeats with progress": _times(costs.heartbeat, PROCESSES_A_DAY * beats),
        "looks for a cancel note": _times(costs.look, PROCESSES_A_DAY * looks),
        "status and links": _times(
            _times(costs.status, POLLS) + costs.end_and_links, PROCESSES_A_DAY
        ),
        "presence": _times(costs.presence, turns),
        "starts of workers": _times(starts, WORKERS * STARTS_A_DAY),
        "clean-up": _times(clean_up, PROCESSES_A_DAY) + _times(costs.cleaner_look, cleaner_looks),
        "sweep": _times(sweep, 1),
    }


def _times(requests: Mapping[str, float], times: float) -> Counter[str]:
    return Counter({name: round(number * times) for name, number in requests.items()})


def price(requests: Mapping[str, float], prices: Prices) -> float:
    """In USD."""
    return sum(
        number * (prices.read if name in READS else prices.write) / 1e6
        for name, number in requests.items()
        if name not in prices.free
    )


def _a_day(parts: Mapping[str, Counter[str]]) -> list[Figure]:
    whole: Counter[str] = sum(parts.values(), Counter())
    reads = sum(number for name, number in whole.items() if name in READS)
    lists = whole["ListObjectsV2"]
    writes = whole.total() - reads - lists
    rows = (ROWS_WRITTEN + ROWS_REMOVED) * PROCESSES_A_DAY
    found = [
        Figure(f"a day: {part}", requests.total() / 1e6, "million requests")
        for part, requests in parts.items()
    ]
    found += [
        Figure(f"a day: {part}, {store}", price(requests, prices), "USD")
        for part, requests in [*parts.items(), ("all", whole)]
        for store, prices in PRICES.items()
    ]
    return [
        *found,
        _rate("writes and deletes", writes, WRITES_LIMIT),
        _rate("reads", reads, READS_LIMIT),
        _rate("lists", lists, READS_LIMIT),
        _rate("rows written and removed under index/", rows, WRITES_LIMIT),
        _rate("writes under workers/", parts["presence"]["PutObject"], WRITES_LIMIT),
    ]


def _rate(what: str, a_day: float, limit: int) -> Figure:
    note = "against what S3 names for one partition"
    return Figure(f"{what} per second", a_day / DAY, "1/s", goal=Goal("<=", limit), note=note)


def _measured(costs: Costs) -> list[Figure]:
    goals = {
        "process": 12,
        "heartbeat": 1,
        "look": 1,
        "status": 1,
        "end_and_links": 1,
        "probe": 140,
        "start_up": 58,
        "presence": 1,
        "cleaner_look": 1,
    }
    return [
        count(
            f"measured: {name.replace('_', ' ')}",
            requests.total(),
            goal=Goal("<=", goals[name]),
            note=", ".join(f"{number} {what}" for what, number in sorted(requests.items())),
        )
        for name, requests in costs._asdict().items()
    ]


# ---- ten million processes


async def _simulate(
    folder: Path, *, quick: bool
) -> tuple[list[Figure], dict[str, float], dict[str, float]]:
    """Figures; the requests that a clean-up takes for each process that expires; those of the
    sweep in a day."""
    large = 3 * SMALL if quick else LARGE
    hour = EXPIRED if quick else round(PROCESSES_A_DAY / HOURS)
    found: list[Figure] = []
    few = await _cleaned(folder, SMALL, EXPIRED)
    many = await _cleaned(folder, large, EXPIRED)
    found += [
        *await _lists(large),
        await _seeking(),
        *await _fleet(folder),
        count(f"clean-up of {EXPIRED:,} among {SMALL:,}", few.total(), goal=Goal("<=", 5_700)),
        count(
            f"clean-up of {EXPIRED:,} among {large:,}", many.total(), goal=Goal("==", few.total())
        ),
    ]
    an_hour = many if hour == EXPIRED else await _cleaned(folder, large, hour)
    each = {name: number / hour for name, number in an_hour.items()}
    runs = runs_of_a_round(large)
    days = len(runs) / HOURS
    swept = await _swept(folder)
    return (
        [
            *found,
            Figure(f"clean-up of {hour:,}, for each", an_hour.total() / hour, "requests"),
            Figure(
                f"clean-up of {hour:,} at {1000 * TRIP_SECONDS:.0f} ms a request",
                _seconds(hour, TRIPS),
                "s",
                goal=Goal("<=", 3600),
            ),
            Figure(f"days until the sweep has seen {large:,}", days, "days", goal=Goal("<=", 30)),
            Figure(
                "what the sweep sees in 30 days", _seen_in(30 * HOURS) / 1e6, "million processes"
            ),
            Figure("sweep, for each that it sees", sum(swept.values()), "requests"),
            Figure(
                f"largest run of the sweep, {max(runs):,}, at {1000 * TRIP_SECONDS:.0f} ms a "
                "request",
                _seconds(max(runs), SWEEP_TRIPS),
                "s",
                goal=Goal("<=", 3600),
            ),
        ],
        each,
        {name: number * large / days for name, number in swept.items()},
    )


def runs_of_a_round(there: int) -> list[int]:
    """How many the sweep looks at in each run, until it has seen all: one run an hour."""
    runs: list[int] = []
    seen = 0
    while seen < there:
        runs.append(min(pace(seen), there - seen))
        seen += runs[-1]
    return runs


def _seen_in(runs: int) -> int:
    seen = 0
    for _ in range(runs):
        seen += pace(seen)
    return seen


def _seconds(processes: int, trips: int) -> float:
    return processes / AT_ONCE * trips * TRIP_SECONDS


async def _swept(folder: Path) -> dict[str, float]:
    """What the real sweep asks for each process where nothing is to be mended."""
    store = _store(SMALL)
    last = LastClean(store)  # type: ignore[arg-type]
    run = CleanRun(_leases(store, folder), CleanReport(), last, utc_now().timestamp())
    for _ in range(SWEEPS):
        await sweep_processes(run)
    assert not run.report.tallies, run.report.counts()
    seen = last.place("processes").seen
    return {name: number / seen for name, number in store.asked.items()}


def _store(there: int) -> ManyProcesses:
    return ManyProcesses(there, timedelta(seconds=DAY / PROCESSES_A_DAY), utc_now())


async def _cleaned(folder: Path, there: int, expired: int) -> Requests:
    """What the real cleaner asks where so many have expired, until nothing is left of them."""
    store = _store(there)
    await _put_workers(store, folder)
    store.asked.clear()
    days = (there - expired - 0.5) / PROCESSES_A_DAY
    for passed, what in ((0, "processes"), (2, "erased records")):
        store.let_pass(days=passed)
        report = CleanReport()
        with bar(expired, f"{what} among {there:,}") as shown:
            report.on_change = shown.update
            await clean(_leases(store, folder, process_days=days + passed), report)
        assert report.counts()[what] == expired, report.counts()
    return store.asked


async def _lists(there: int) -> list[Figure]:
    """What pages of the list take."""
    store = _store(there)
    found = []
    for what, after in (("first", None), ("middle", there // 2), ("last", there - 201)):
        store.asked.clear()
        cursor = None if after is None else store.row(after).removeprefix("index/")
        rows, _ = await read_rows(store, limit=200, cursor=cursor, status=None, kind=None)
        assert len(rows) == 200, len(rows)
        found.append(count(f"{what} page of {there:,}", store.asked.total(), goal=Goal("==", 1)))
    return found


async def _seeking() -> Figure:
    """What it takes to find that no process is of a kind."""
    store = _store(SMALL)
    cursor: str | None = ""
    while cursor is not None:
        rows, cursor = await read_rows(store, limit=200, cursor=cursor, status=None, kind="none")
        assert not rows
    name = f"all pages of {SMALL:,} for a kind that has none"
    return count(name, store.asked.total(), goal=Goal("<=", SMALL // 999 + 1))


async def _fleet(folder: Path) -> list[Figure]:
    """What `metrics` of all workers takes, and whom it leaves out."""
    store = _store(1)
    await _put_workers(store, folder)
    store.asked.clear()
    fleet = await Presence(store, _leases(store, folder).settings, Meter()).fleet()
    name = f"`metrics` of {WORKERS:,} workers"
    return [
        count(name, store.asked.total(), goal=Goal("<=", WORKERS // 1000 + 1001)),
        Figure(f"{name}: not read", fleet.unreadable, "workers", goal=Goal("==", 0)),
    ]


async def _put_workers(store: ManyProcesses, folder: Path) -> None:
    """The presence of all of them. Their figures are left out: nobody reads them here."""
    presence = Presence(store, _leases(store, folder).settings, Meter())
    seen = presence.myself().model_copy(update={"families": ()})
    for number in range(WORKERS):
        mine = seen.model_copy(update={"name": f"w{number:05d}", "boot": f"b{number}"})
        await store.put(f"workers/{mine.name}.json", mine.model_dump_json().encode())


def _leases(store: ManyProcesses, folder: Path, **changes: Any) -> Leases:
    chosen = settings(folder / "scratch", **(SLOW | changes))
    return new_leases(store, chosen)
