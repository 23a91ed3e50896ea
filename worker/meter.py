"""What a worker counts: processes, times, failures, requests to the store, money.

One `Meter` a worker; whoever does something says so, in one line. What it counts lives as long as
its worker, as Prometheus expects of counters; `health.presence` carries it to other workers.
Labels are words of ours, or of a bounded number: never a process, a file, or a caller's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Seconds: from a job of a moment to one of a week.
PHASE_BUCKETS = (
    0.1,
    0.3,
    1,
    3,
    10,
    30,
    60,
    300,
    900,
    3600,
    10_800,
    21_600,
    43_200,
    86_400,
    259_200,
    604_800,
)
PHASE_SECONDS, CANCEL_SECONDS = "worker_phase_seconds", "worker_cancel_seconds"
CANCEL_BUCKETS = (0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 3600)
#: Kinds and failure codes are few; should a job invent one a run, the rest are `other`.
MAX_NAMES = 100
OTHER = "other"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

Direction = Literal["up", "down"]


class Sample(NamedTuple):
    """One number."""

    name: str
    labels: dict[str, str]
    value: float


class Extremes(NamedTuple):
    """The smallest and the largest value that a histogram saw; Prometheus has no place for them."""

    labels: dict[str, str]
    least: float
    most: float


class Family(NamedTuple):
    """All numbers of one metric, as Prometheus groups them; in JSON a list of these five."""

    name: str
    #: `counter`, `gauge` or `histogram`.
    type: str
    help: str
    samples: tuple[Sample, ...]
    #: Of a histogram, for each set of labels.
    extremes: tuple[Extremes, ...] = ()


class Load(NamedTuple):
    """What a worker is at, this moment."""

    #: Processes that hold a slot, and those that wait for one.
    running: int = 0
    queued: int = 0
    slots: int = 0
    #: How long at least one slot was taken, so far.
    busy_seconds: float = 0.0
    #: The kind of each child that is at work, and for how many seconds.
    children: tuple[tuple[str, float], ...] = ()


class Meter:
    """Counts what one worker does. `asked` and `moved` come from any thread, the rest from one."""

    def __init__(self, *, price_per_hour: float | None = None, gpus: int = 0) -> None:
        self._price_per_hour = price_per_hour
        #: How many GPUs each child of this worker can use.
        self.gpus = gpus
        self._load: Callable[[], Load] = Load
        self._names: set[str] = set()
        self._gpu_seconds: dict[str, float] = {}
        self._extremes: dict[str, dict[tuple[tuple[str, str], ...], Extremes]] = {}
        # Of its own: what other libraries register globally is none of this worker's figures.
        self._registry = CollectorRegistry(auto_describe=False)
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._processes = counter(
            "worker_processes", "Ends of processes that this worker wrote.", ["kind", "status"]
        )
        self._attempts = counter("worker_attempts", "Attempts that began here.", ["kind"])
        self._takeovers = counter(
            "worker_takeovers", "Attempts that continue another one, by how that ended.", ["reason"]
        )
        self._failures = counter(
            "worker_failures", "Ends of processes that have a failure, by its code.", ["code"]
        )
        self._phases = histogram(
            PHASE_SECONDS,
            "How long attempts here spent on what.",
            ["kind", "phase"],
            buckets=PHASE_BUCKETS,
        )
        self._cancels = histogram(
            CANCEL_SECONDS,
            "From a caller's request to cancel to the end written.",
            buckets=CANCEL_BUCKETS,
        )
        self._requests = counter(
            "worker_store_requests",
            "Requests to the store, repeated ones too.",
            ["operation", "outcome"],
        )
        self._bytes = counter(
            "worker_store_bytes", "Bytes of objects that the store took or gave.", ["direction"]
        )
        self._registry.register(_Live(self._now))

    # ---- what happened

    def attempt_began(self, kind: str) -> None:
        """An attempt at a process begins here, the first or a later one."""
        self._attempts.labels(self._known(kind)).inc()

    def took_over(self, reason: str) -> None:
        """It continues an attempt that ended as `reason` says, a status or another word of ours."""
        self._takeovers.labels(reason).inc()

    def phase_ended(self, kind: str, phase: str, seconds: float, *, of_child: bool) -> None:
        """An attempt spent so long on `phase`; `of_child`: a child was at work."""
        kind = self._known(kind)
        self._phases.labels(kind, phase).observe(seconds)
        self._saw(PHASE_SECONDS, seconds, kind=kind, phase=phase)
        if of_child:
            self._gpu_seconds[kind] = self._gpu_seconds.get(kind, 0.0) + seconds * self.gpus

    def ended(self, kind: str, status: str, failure_code: str | None) -> None:
        """This worker wrote the end of a process, its own or one that nobody held."""
        self._processes.labels(self._known(kind), status).inc()
        if failure_code is not None:
            self._failures.labels(self._known(failure_code)).inc()

    def cancelled(self, seconds: float) -> None:
        """A caller's cancel was heeded, so long after it was asked."""
        self._cancels.observe(seconds)
        self._saw(CANCEL_SECONDS, seconds)

    def asked(self, operation: str, outcome: str) -> None:
        """The store was sent one request."""
        self._requests.labels(operation, outcome).inc()

    def moved(self, direction: Direction, count: int) -> None:
        """So many bytes of an object went `up` into the store, or came `down`."""
        self._bytes.labels(direction).inc(count)

    # ---- what it comes to

    def watch(self, load: Callable[[], Load]) -> None:
        """Ask `load` whenever the figures are read."""
        self._load = load

    def load(self) -> Load:
        return self._load()

    def families(self) -> tuple[Family, ...]:
        """All figures as they are now. Call it where `load` may be called."""
        return tuple(
            Family(
                each.name,
                each.type,
                each.documentation,
                tuple(
                    Sample(sample.name, dict(sample.labels), float(sample.value))
                    for sample in each.samples
                    if not sample.name.endswith("_created")  # when it was first counted: no figure
                ),
                tuple(self._extremes.get(each.name, {}).values()),
            )
            for each in self._registry.collect()
        )

    # ---- inside

    def _saw(self, name: str, value: float, **labels: str) -> None:
        mine, value = self._extremes.setdefault(name, {}), float(value)
        key = tuple(labels.items())
        before = mine.get(key, Extremes(labels, value, value))
        mine[key] = Extremes(labels, min(before.least, value), max(before.most, value))

    def _known(self, name: str) -> str:
        """`name` itself, if it is one of a bounded number of sane ones."""
        if name not in self._names:
            if len(self._names) >= MAX_NAMES or not _NAME.fullmatch(name):
                return OTHER
            self._names.add(name)
        return name

    def _now(self) -> Iterator[Metric]:
        """What is not counted when it happens, but true while it lasts."""
        load = self._load()
        yield GaugeMetricFamily("worker_running", "Processes that hold a slot.", load.running)
        yield GaugeMetricFamily("worker_queued", "Processes that wait for a slot.", load.queued)
        yield GaugeMetricFamily("worker_slots", "Processes that may run at a time.", load.slots)
        busy = load.busy_seconds
        yield CounterMetricFamily(
            "worker_busy_seconds", "Seconds in which at least one slot was taken.", busy
        )
        gpu_seconds = CounterMetricFamily(
            "worker_gpu_seconds", "Seconds of running children, times GPUs.", labels=["kind"]
        )
        for kind, seconds in self._gpu_seconds_so_far(load).items():
            gpu_seconds.add_metric([kind], seconds)
        yield gpu_seconds
        if self._price_per_hour is not None:
            cost = busy / 3600 * self._price_per_hour
            yield CounterMetricFamily("worker_cost", "Price of the busy seconds.", cost)

    def _gpu_seconds_so_far(self, load: Load) -> dict[str, float]:
        """Also of children at work: some run for days, and their worker may not see their end."""
        so_far = dict(self._gpu_seconds)
        for name, seconds in load.children:
            kind = self._known(name)
            so_far[kind] = so_far.get(kind, 0.0) + seconds * self.gpus
        return so_far


class _Live(Collector):
    """A function as a collector."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()
