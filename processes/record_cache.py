"""This worker's own copies of records: newest in RAM, all on local disk, unsent writes included.

Not the truth. A copy answers a lookup for good only when its process can never change again;
otherwise it answers only when the store cannot be asked, and says that it is stale. A write that
the store did not take yet is kept here too (a journal), so that it outlives the worker's process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from pathlib import Path

from pydantic import BaseModel, ValidationError

from processes.record import Record
from storage import Stored

log = logging.getLogger(__name__)

#: Records kept in RAM; the rest is on disk. A record is a few KiB.
MAX_IN_MEMORY = 1000
#: What a copy is called while it is written.
PARTIAL_NAME = re.compile(r"\..+\.json\.\d+\.\d+")


class Copy(BaseModel, frozen=True):
    """A record as this worker last knew it."""

    #: As the store had it when it was seen; what was never stored is never an answer.
    record: Record
    #: The version in the store that `record` is.
    version: str
    #: Seconds since the epoch, by the store's clock; 0 if it was never read from there.
    modified: float = 0.0
    #: Age by the store's clock when it was seen.
    age_seconds: float = 0.0
    #: When it was seen, by this machine's clock: only to tell how old a stale answer is.
    seen_at: float
    #: What this worker owes the store: to be written on top of `version`, and nothing else.
    unsent: Record | None = None

    @property
    def final(self) -> bool:
        """Whether its process has ended for good: it can be deleted, and nothing else."""
        return self.record.terminal and not self.record.resumable

    def seen_within(self, seconds: float) -> bool:
        return 0 <= time.time() - self.seen_at <= seconds

    def age_now(self) -> float:
        return self.age_seconds + max(0.0, time.time() - self.seen_at)

    def as_stored(self) -> Stored:
        """What a conditional read compares with. Its bytes are never looked at."""
        return Stored(b"", self.version, self.modified, self.age_seconds)


class RecordCache:
    """Copies by process id. Bounded in RAM; a folder of one small file each on disk.

    A disk that is full or gone costs the copy, never the process: it is logged and life goes on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recent: OrderedDict[str, Copy] = OrderedDict()

    async def keep(self, copy: Copy) -> None:
        known = self._recent.get(copy.record.process_id)
        self._remember(copy)
        if known and known.version == copy.version and known.unsent == copy.unsent:
            return  # a poll that found nothing new is no reason to write
        await asyncio.to_thread(self._write, copy)

    async def find(self, process_id: str) -> Copy | None:
        if process_id in self._recent:
            self._recent.move_to_end(process_id)
            return self._recent[process_id]
        copy = await asyncio.to_thread(self._read, self._path(process_id))
        if copy:
            self._remember(copy)
        return copy

    async def unsent(self) -> list[Copy]:
        """Writes that this machine still owes the store."""
        return await asyncio.to_thread(self._unsent)

    async def drop(self, process_id: str) -> None:
        self._recent.pop(process_id, None)
        await asyncio.to_thread(self._path(process_id).unlink, missing_ok=True)

    def _remember(self, copy: Copy) -> None:
        self._recent[copy.record.process_id] = copy
        self._recent.move_to_end(copy.record.process_id)
        while len(self._recent) > MAX_IN_MEMORY:
            self._recent.popitem(last=False)

    def _path(self, process_id: str) -> Path:
        return self._folder / f"{process_id}.json"

    def _write(self, copy: Copy) -> None:
        path = self._path(copy.record.process_id)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(copy.model_dump_json())
            partial.replace(path)
        except OSError as error:
            log.warning("no local copy of %s: %s", copy.record.process_id, error.strerror)

    def _read(self, path: Path) -> Copy | None:
        try:
            return Copy.model_validate_json(path.read_text())
        except (OSError, ValidationError):
            return None

    def _unsent(self) -> list[Copy]:
        copies = (self._read(path) for path in sorted(self._folder.glob("*.json")))
        return [copy for copy in copies if copy and copy.unsent]
