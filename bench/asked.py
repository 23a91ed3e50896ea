"""How many requests a store was sent, as the worker's own meter counts them."""

from __future__ import annotations

from collections import Counter

from worker.meter import Meter


def requests_of(meter: Meter) -> Counter[str]:
    """By operation: what botocore sent to a bucket, or the calls to a folder. Repeated ones too."""
    sent: Counter[str] = Counter()
    for family in meter.families():
        for sample in family.samples:
            if sample.name == "worker_store_requests_total":
                sent[sample.labels["operation"]] += int(sample.value)
    return sent
