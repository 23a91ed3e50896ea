"""Who is there: each worker writes its figures into the store, and any of them reads all.

`workers/{name}.json` is written over and over by one worker and removed when it leaves. What was
not written for three turns, by the store's clock, is of a worker that is gone. How long its turn is
each says itself: workers of one bucket may be set differently.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from health.versions import versions
from storage import (
    Listed,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StorageFailure,
    Store,
    Stored,
)
from stores.prefixes import list_all
from utils import new_nonce, set_within, utc_now
from worker.meter import Family, Meter
from worker.settings import Role, Settings

log = logging.getLogger(__name__)

PREFIX = "workers/"
#: Turns without a word after which a worker is gone.
TURNS = 3
#: The longest turn that the settings allow.
LONGEST_TURN_SECONDS = 600.0
#: Files that are read at a time.
READS = 16
#: Files that are read at most, the newest: the others count as unreadable.
MAX_READS = 1000
#: A worker's figures are some 50 KB; what is larger was written by something else.
MAX_BYTES = 1 << 20
#: A worker that leaves does not wait longer than that for a store.
LEAVE_SECONDS = 1.0
#: What a worker that died left there is removed by another when it is so old.
FORGET_SECONDS = 86_400.0


class WorkerSeen(BaseModel, frozen=True, extra="ignore"):
    """A worker as it describes itself. Unknown fields are ignored, as in records."""

    #: `worker_id`; of a second worker with the same one `{worker_id}~{boot}`.
    name: str
    worker_id: str
    #: New with every start of a worker.
    boot: str
    role: Role
    slots: int
    running: int
    queued: int
    started_at: datetime
    written_at: datetime
    #: How often it writes.
    turn_seconds: float = Field(gt=0, le=LONGEST_TURN_SECONDS)
    versions: dict[str, str | None]
    families: tuple[Family, ...]

    def lives(self, age_seconds: float) -> bool:
        """Whether it does, if it wrote this so long ago."""
        return age_seconds < TURNS * self.turn_seconds


class Other(NamedTuple):
    """A worker that lives elsewhere, and how old its figures are, by the store's clock."""

    seen: WorkerSeen
    age_seconds: float


class Fleet(NamedTuple):
    """The live workers beside this one."""

    others: list[Other]
    #: Files, as young as those of live workers, that could not be understood, or whose age the
    #: store did not tell.
    unreadable: int


class Presence:
    """This worker's place among the others."""

    def __init__(self, store: Store, settings: Settings, meter: Meter) -> None:
        self._store = store
        self._settings = settings
        self._meter = meter
        self._boot = new_nonce()
        self._started_at = utc_now()
        self._name = settings.worker_id
        #: Of the file as this worker wrote it last; None: it wrote none, or somebody else since.
        self._version: str | None = None
        self._leaving = asyncio.Event()
        self._writing = asyncio.Lock()

    async def keep(self) -> None:
        """Write at once and then every turn, until `leave`. Passes over a store that is away."""
        forgotten = False
        while not self._leaving.is_set():
            try:
                async with self._writing:
                    await self._write()
                if not forgotten:
                    await self._forget_the_dead()
                    forgotten = True
            except StorageFailure as error:
                log.debug("this worker's figures were not stored: %s", error)
            except Exception:
                log.exception("this worker's figures were not stored")
            await set_within(self._leaving, self._settings.presence_seconds)

    async def leave(self) -> None:
        """Say that this worker is gone. Gives up after a second; then its silence will tell."""
        self._leaving.set()
        with suppress(StorageFailure, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS), self._writing:
                if self._version is not None:
                    await self._store.delete([_key(self._name)])
                    self._version = None

    def myself(self) -> WorkerSeen:
        """This worker as it is now. Call it on the event loop."""
        load = self._meter.load()
        return WorkerSeen(
            name=self._name,
            worker_id=self._settings.worker_id,
            boot=self._boot,
            role=self._settings.role,
            slots=load.slots,
            running=load.running,
            queued=load.queued,
            started_at=self._started_at,
            written_at=utc_now(),
            turn_seconds=self._settings.presence_seconds,
            versions=versions(),
            families=self._meter.families(),
        )

    async def fleet(self) -> Fleet:
        """All live workers but this one, by name. One LIST, and a GET for each that may be live:
        that wrote within the longest turns there are.

        Raises:
            StorageUnavailable, StorageMisconfigured: nobody can tell.
        """
        rows = sorted(
            [row async for row in list_all(self._store, PREFIX)],
            key=lambda row: row.modified,
            reverse=True,
        )
        now = await self._now_of_store(rows)
        oldest = -math.inf if now is None else now - TURNS * LONGEST_TURN_SECONDS
        recent = [row for row in rows if row.modified >= oldest]
        at_a_time = asyncio.Semaphore(READS)
        read = await asyncio.gather(*(self._read(row, at_a_time) for row in recent[:MAX_READS]))
        found = [other for other in read if isinstance(other, Other)]
        others = [other for other in found if other.seen.lives(other.age_seconds)]
        unreadable = read.count(_UNREADABLE) + len(recent[MAX_READS:])
        return Fleet(sorted(others, key=lambda other: other.seen.name), unreadable)

    # ---- writing

    async def _write(self) -> None:
        try:
            await self._write_over()
        except (ObjectChanged, ObjectExists):
            self._version = None  # somebody else was there: look who
            with suppress(ObjectChanged, ObjectExists):
                await self._write_over()

    async def _write_over(self) -> None:
        """On top of what this worker wrote, so that two of one id never hide each other."""
        version = self._version
        if version is None:
            found = await self._find()
            if found is not None and self._is_of_a_twin(found):
                self._name = f"{self._settings.worker_id}~{self._boot}"
                log.warning(
                    "another worker calls itself %r, or did until just now: this one is shown as "
                    "%r; give each its own WORKER_ID",
                    self._settings.worker_id,
                    self._name,
                )
                found = await self._find()
            version = found.version if found else None
        data = self.myself().model_dump_json().encode()
        key = _key(self._name)
        if version is None:
            self._version = await self._store.create(key, data)
        else:
            self._version = await self._store.replace(key, data, version)

    async def _find(self) -> Stored | None:
        try:
            return await self._store.get(_key(self._name))
        except ObjectNotFound:
            return None

    def _is_of_a_twin(self, found: Stored) -> bool:
        """Whether another worker that lives wrote it, or one that may live."""
        seen, age = _parsed(found.data), found.age_seconds
        return seen is not None and seen.boot != self._boot and (age is None or seen.lives(age))

    async def _forget_the_dead(self) -> None:
        rows = [row async for row in list_all(self._store, PREFIX)]
        newest = max(rows, key=lambda row: row.modified, default=None)
        if newest is not None:  # just now written, by this worker if by no other
            old = [row.key for row in rows if newest.modified - row.modified > FORGET_SECONDS]
            await self._store.delete(old)

    # ---- reading

    async def _now_of_store(self, newest_first: list[Listed]) -> float | None:
        """By the store's clock, as an object read just now tells it; workers' clocks disagree."""
        for row in newest_first:
            with suppress(ObjectNotFound):
                return (await self._store.get(row.key)).read_at
        return None

    async def _read(self, row: Listed, at_a_time: asyncio.Semaphore) -> Other | str | None:
        """None: it left just now, or is this worker's own."""
        if row.size > MAX_BYTES:
            return _UNREADABLE
        try:
            async with at_a_time:
                stored = await self._store.get(row.key)
        except ObjectNotFound:
            return None
        seen = _parsed(stored.data)
        if seen is None or _key(seen.name) != row.key:  # a copy would count a worker twice
            return _UNREADABLE
        if seen.boot == self._boot:
            return None
        return _UNREADABLE if stored.age_seconds is None else Other(seen, stored.age_seconds)


_UNREADABLE = "unreadable"


def _key(name: str) -> str:
    """A worker may be called anything; a key may not."""
    return f"{PREFIX}{quote(name, safe='~')[-200:]}.json"


def _parsed(data: bytes) -> WorkerSeen | None:
    try:
        return WorkerSeen.model_validate_json(data)
    except ValidationError:
        return None
