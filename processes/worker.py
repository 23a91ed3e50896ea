"""This worker, as the parts of a process's life see it: what they all need to be handed."""

from __future__ import annotations

from typing import NamedTuple

from inputs.blob_cache import BlobCache
from processes.manifest import Manifests
from processes.record_cache import RecordCache
from processes.slots import Slots
from storage import Store
from utils import Clock, Settings


class Worker(NamedTuple):
    """The things of which a worker has one each."""

    store: Store
    cache: RecordCache
    manifests: Manifests
    #: Inputs that more than one process may need.
    blobs: BlobCache
    settings: Settings
    #: For attempts that run a child.
    slots: Slots
    #: For archives, which this worker writes itself.
    archive_slots: Slots
    #: Wall-clock time, for what is written down. No decision depends on it.
    clock: Clock
