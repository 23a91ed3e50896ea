"""This worker, as the parts of a process's life see it: what they all need to be handed."""

from __future__ import annotations

from typing import NamedTuple

from processes.record_cache import RecordCache
from processes.slots import Slots
from storage import Store
from utils import Clock, Settings


class Worker(NamedTuple):
    """The things of which a worker has one each."""

    store: Store
    cache: RecordCache
    settings: Settings
    slots: Slots
    #: Wall-clock time, for what is written down. No decision depends on it.
    clock: Clock
