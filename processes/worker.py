"""This worker, as the parts of a process's life see it: what they all need to be handed."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from inputs.blob_cache import BlobCache
from inputs.touches import Touches
from jobs.forks import Template
from meter import Meter
from processes.gpu_shares import GpuShares
from processes.kept_models import KeptModels
from processes.manifest import Manifests
from processes.record import Record
from processes.record_cache import RecordCache
from processes.slots import Slots
from processes.workplace import Workplace
from redaction import Redactor
from settings import Settings
from storage import Store
from utils import Clock


class Worker(NamedTuple):
    """The things of which a worker has one each."""

    store: Store
    cache: RecordCache
    manifests: Manifests
    #: Inputs that more than one process may need.
    blobs: BlobCache
    #: Which input folders are in use.
    touches: Touches
    #: Where attempts work.
    workplace: Workplace
    settings: Settings
    #: For attempts that run a child.
    slots: Slots
    #: For archives, which this worker writes itself.
    archive_places: Slots
    #: Knows this worker's secrets; what leaves a process goes through it.
    redactor: Redactor
    #: Wall-clock time, for what is written down. No decision depends on it.
    clock: Clock
    #: Counts what this worker does.
    meter: Meter
    #: The GPUs of this machine, by slots.
    gpus: GpuShares
    #: Forks children; None: each is started from nothing.
    template: Template | None
    #: Which template an attempt is forked from.
    kept: KeptModels

    def count_end(self, record: Record) -> None:
        """The store has taken `record` from here, an end that it did not hold before."""
        code = record.failure.code if record.failure else None
        self.meter.ended(record.kind, record.status, code)


#: On the scratch disk: where all workers of this machine work, and keep copies of records.
WORK, RECORDS = "work", "records"
#: There, copies of each store have a folder of such a name.
STORE_NAME = re.compile(r"[0-9a-f]{16}")
#: Archives that are written at a time: each takes memory and the store's bandwidth, no slot.
ARCHIVES_AT_ONCE = 2


def new_worker(
    store: Store,
    settings: Settings,
    redactor: Redactor,
    clock: Clock,
    meter: Meter | None = None,
) -> Worker:
    """A worker at `store`, with the folders on its scratch disk that it may share with others."""
    scratch = settings.scratch_dir
    template = Template() if settings.template and settings.role != "control" else None
    # Workers on one machine may share a disk, but copies of two stores must not meet.
    store_name = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return Worker(
        store=store,
        cache=RecordCache(scratch / RECORDS / store_name),
        manifests=Manifests(store),
        blobs=BlobCache(scratch / "inputs", settings.input_cache_bytes),
        touches=Touches(store, clock),
        workplace=Workplace(scratch / WORK),
        settings=settings,
        slots=Slots(settings.slots),
        archive_places=Slots(ARCHIVES_AT_ONCE),
        redactor=redactor,
        clock=clock,
        meter=meter or Meter(price_per_hour=settings.price_per_hour),
        gpus=GpuShares(settings.slots),
        template=template,
        kept=KeptModels(template, settings),
    )
