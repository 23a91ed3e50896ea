"""The figures of one worker or of all: for a person as JSON, for Prometheus as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import JsonValue

from health.presence import Fleet, Other, Presence, WorkerSeen
from records.replies import Reply, page_of
from storage import StorageMisconfigured, StorageUnavailable
from utils import timestamp
from worker.meter import CANCEL_SECONDS, PHASE_SECONDS, Extremes, Family, Sample


async def metrics(presence: Presence, *, everyone: bool, as_text: bool) -> Reply:
    """`as_text`: as Prometheus reads it, the series of each worker with its `worker_id`.

    Raises:
        StorageUnavailable, StorageMisconfigured: `everyone` as text, and the store cannot tell.
    """
    mine = presence.myself()
    if as_text:
        others = _understood(await presence.fleet()).others if everyone else []
        seen = [mine, *(other.seen for other in others)]
        return {"content_type": CONTENT_TYPE_LATEST, "text": text_of(seen), "workers": len(seen)}
    reply: Reply = {"worker_id": mine.worker_id, "this_worker": figures(mine.families)}
    return reply | await _of_all(presence, mine) if everyone else reply


async def _of_all(presence: Presence, mine: WorkerSeen) -> Reply:
    try:
        fleet = _understood(await presence.fleet())
    except (StorageUnavailable, StorageMisconfigured) as error:
        # What this worker knows of itself is no less true.
        return {"workers": None, "all_workers": None, "fleet": None, "why": str(error)}
    everyone = [Other(mine, 0.0), *fleet.others]
    return {
        "workers": len(everyone),
        "all_workers": figures(merged(other.seen.families for other in everyone)),
        "fleet": page_of(_row(other) for other in everyone),
        "unreadable": fleet.unreadable,
    }


def _understood(fleet: Fleet) -> Fleet:
    """Those whose figures can be told along with ours; others would spoil everybody's."""
    others = [other for other in fleet.others if _is_sound(other.seen.families)]
    return Fleet(others, fleet.unreadable + len(fleet.others) - len(others))


def _is_sound(families: Iterable[Family]) -> bool:
    """Whether they are figures as workers count them, of whatever version."""
    try:
        for family in families:
            Metric(family.name, family.help, family.type)
            if not _NAME.fullmatch(family.name) or not all(
                _belongs(sample, family) for sample in family.samples
            ):
                return False
            if not all(0 <= each.least <= each.most < math.inf for each in family.extremes):
                return False
        figures(families)
    except (LookupError, ValueError):  # a label is missing, or a name or a number is none
        return False
    return True


def _belongs(sample: Sample, family: Family) -> bool:
    return (
        sample.name.removeprefix(family.name) in _ENDINGS.get(family.type, {""})
        and all(_NAME.fullmatch(label) for label in sample.labels)
        and math.isfinite(sample.value)
        and sample.value >= 0
        and not (sample.name.endswith("_bucket") and math.isnan(float(sample.labels["le"])))
    )


#: Of metrics and labels. Prometheus takes more by now, but not from everybody.
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: How the samples of a metric may be called, after its name.
_ENDINGS = {
    "counter": {"_total", "_created"},
    "histogram": {"_bucket", "_count", "_sum", "_created"},
}
Labels = tuple[tuple[str, str], ...]
_NOT_SHOWN = {"families", "written_at", "turn_seconds"}


def _row(other: Other) -> Reply:
    row: Reply = other.seen.model_dump(mode="json", exclude=_NOT_SHOWN)
    since = timestamp(other.seen.started_at)
    return {**row, "started_at": since, "age_seconds": round(other.age_seconds, 1)}


def merged(each: Iterable[Iterable[Family]]) -> list[Family]:
    """One set of figures of many: samples add up, label by label, and extremes spread."""
    heads: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, Labels], float]] = {}
    extremes: dict[str, dict[Labels, Extremes]] = {}
    for family in (family for families in each for family in families):
        heads.setdefault(family.name, family)
        own = sums.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            own[key] = own.get(key, 0.0) + sample.value
        spread = extremes.setdefault(family.name, {})
        for seen in family.extremes:
            labels = tuple(seen.labels.items())
            before = spread.get(labels, seen)
            low, high = min(before.least, seen.least), max(before.most, seen.most)
            spread[labels] = Extremes(seen.labels, low, high)
    return [
        head._replace(
            samples=tuple(
                Sample(n, dict(labels), value) for (n, labels), value in sums[name].items()
            ),
            extremes=tuple(extremes[name].values()),
        )
        for name, head in heads.items()
    ]


# ---- for Prometheus


class _Metrics(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def text_of(workers: Iterable[WorkerSeen]) -> str:
    """Prometheus' text format. Sums are Prometheus' to make: a worker that leaves would make a sum
    of ours fall, and a counter that falls is taken for one that began anew."""
    metrics: dict[str, Metric] = {}
    for worker in workers:
        for family in worker.families:
            new = Metric(family.name, family.help, family.type)
            metric = metrics.setdefault(family.name, new)
            for sample in family.samples:
                metric.add_sample(
                    sample.name, sample.labels | {"worker_id": worker.name}, sample.value
                )
    return generate_latest(_Metrics(metrics.values())).decode()


# ---- for a person


def figures(families: Iterable[Family]) -> Reply:
    """By what they are about; seconds are seconds, and what never happened is not there."""
    families = list(families)
    samples = [sample for family in families for sample in family.samples]
    named = {sample.name: _number(sample.value) for sample in samples if not sample.labels}
    return {
        "processes": _nested(samples, "worker_processes_total", "status", "kind"),
        "attempts": _nested(samples, "worker_attempts_total", "kind"),
        "takeovers": _nested(samples, "worker_takeovers_total", "reason"),
        "failures": _nested(samples, "worker_failures_total", "code"),
        "phases": _durations(families, PHASE_SECONDS, "phase", "kind"),
        "cancels": _durations(families, CANCEL_SECONDS).get("", {"count": 0}),
        "store_requests": _nested(samples, "worker_store_requests_total", "operation", "outcome"),
        "store_bytes": _nested(samples, "worker_store_bytes_total", "direction"),
        "running": named.get("worker_running"),
        "queued": named.get("worker_queued"),
        "slots": named.get("worker_slots"),
        "busy_seconds": named.get("worker_busy_seconds_total"),
        "gpu_seconds": _nested(samples, "worker_gpu_seconds_total", "kind"),
        "cost": named.get("worker_cost_total"),
    }


def _nested(samples: list[Sample], name: str, *labels: str) -> Reply:
    """`{"completed": {"sleep": 3}}` for the labels `status` and `kind`."""
    tree: Reply = {}
    for sample in samples:
        if sample.name == name:
            _put(tree, [sample.labels[label] for label in labels], _number(sample.value))
    return tree


def _durations(families: list[Family], name: str, *labels: str) -> Reply:
    """A histogram in seconds, as a tree by its labels; without labels, under the empty name."""
    tree: Reply = {}
    for family in families:
        if family.name == name:
            extremes = {tuple(seen.labels.items()): seen for seen in family.extremes}
            sums = {tuple(s.labels.items()): s for s in family.samples if s.name == f"{name}_sum"}
            for count in (s for s in family.samples if s.name == f"{name}_count" and s.value):
                key = tuple(count.labels.items())
                path = [count.labels[label] for label in labels] or [""]
                _put(tree, path, _told(count.value, sums[key].value, extremes[key]))
    return tree


def _told(count: float, total: float, seen: Extremes) -> Reply:
    return {
        "count": _number(count),
        "sum_seconds": _number(total),
        "mean_seconds": _number(total / count),
        "min_seconds": _number(seen.least),
        "max_seconds": _number(seen.most),
    }


def _put(tree: Reply, path: Iterable[str], value: JsonValue) -> None:
    *above, last = path
    for name in above:
        branch = tree.setdefault(name, {})
        assert isinstance(branch, dict)
        tree = branch
    tree[last] = value


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else round(value, 4)
