"""The right to write one record, and the only code that writes one.

A worker holds a process by rewriting its record, each time on top of exactly the version it wrote
last. A worker that finds another version has lost the process. It writes nothing more. What is to
be written is kept as one desired record, the newest: changes made while the store is away are
merged, in order, and arrive with the next write that gets through.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from records.cache import Copy, RecordCache, Unsent
from records.keys import record_key
from records.proof import Proofs
from records.reading import RecordUnreadable, decode_record
from records.record import Record, Trouble, Writer
from storage import (
    ObjectChanged,
    ObjectNotFound,
    StorageFailure,
    StorageUnavailable,
    Store,
)
from utils import Clock, WorkerError, set_within, utc_now
from worker.meter import Meter
from worker.redaction import Redactor
from worker.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

Change = Callable[[Record], Record]


async def until_answered(
    ask: Callable[[], Awaitable[T]],
    waits_for: type[StorageFailure] = StorageUnavailable,
) -> T:
    """What `ask` returns, asked until the store answers. Whoever calls sets the deadline.

    A store that answers "misconfigured" has answered, and its sentence says what to mend; who has
    a job's work to lose waits for that, too (`StorageFailure`).
    """
    while True:
        try:
            return await ask()
        except waits_for as error:
            log.warning("the store is away, waiting: %s", error)
            await asyncio.sleep(1)


class LeaseLost(WorkerError):
    """Another worker has taken the process over. Nothing more may be written about it from here."""

    code = "lease_lost"


class Lease:
    """A record that this worker may write, as stored and as desired.

    `keep` is the one writer. All other code only changes the desired record and, if it must know,
    waits.
    """

    def __init__(self, leases: Leases, stored: Record, version: str, clock: Clock) -> None:
        self._count_end = leases.count_end
        self._cache = leases.cache
        self._proofs = leases.proofs
        #: Tells the times of this process; see `clock_of`.
        self.clock = clock
        self._store = leases.store
        self._settings = leases.settings
        self._stored = stored
        self._version = version
        self._desired = stored
        #: Takes the secrets out of whatever is going to be written. The attempt adds its own.
        self.redactor = leases.redactor
        self._submitted = self._sent = 0
        self._progress_is_new = False
        self._failures = 0
        self._journalled = False
        self._trouble: Trouble | None = None
        self._written_at = time.monotonic()
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        #: Set once the process belongs to somebody else.
        self.lost = asyncio.Event()

    @property
    def record(self) -> Record:
        """What callers may be told: what is stored, and how the attempt comes along since."""
        desired = self._desired
        return self._stored.along_with(desired, self._trouble or desired.trouble)

    @property
    def desired(self) -> Record:
        """The newest record, stored or not."""
        return self._desired

    @property
    def age_seconds(self) -> float:
        """Since the last write that the store took."""
        return time.monotonic() - self._written_at

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written: the end is stored, or the lease is lost."""
        return self._over() or self.lost.is_set()

    def report(self, change: Change) -> None:
        """Progress and counts: seen at once by whoever asks here, stored when a write is due."""
        if not self._desired.released:  # what comes after the end comes too late
            self._desired = change(self._desired).redacted(self.redactor, self._desired)
            if not self._progress_is_new:  # or the keeper knows, and sleeps no longer than it may
                self._progress_is_new = True
                self._wake.set()

    def submit(self, change: Change) -> None:
        """Submit a change; it is written at once, or merged into what waits for the store."""
        if not self._desired.released:
            self._desired = change(self._desired).redacted(self.redactor, self._desired)
            self._submitted += 1
            self._wake.set()

    async def change(self, change: Change) -> Record:
        """Make a change and return when the store holds it, however long the store is away.

        Raises:
            LeaseLost: it never will.
        """
        self.submit(change)
        mine = self._submitted
        async with self._news:
            await self._news.wait_for(lambda: self.lost.is_set() or self._sent >= mine)
        if self._sent < mine:
            raise LeaseLost(f"process {self._stored.process_id} belongs to another worker now")
        return self.record

    async def revision_above(self, revision: int) -> None:
        """Return once the stored record is newer than `revision`, or nothing newer will come."""
        async with self._news:
            await self._news.wait_for(lambda: self._stored.revision > revision or self.ended)

    async def keep(self) -> None:
        """Write what is due, at least every heartbeat, until the process is over or lost."""
        try:
            while not self.ended:
                await self._due()
                await self._write_or_journal()
                await self._tell()
        finally:
            if not self._over():  # whatever ends the one writer ends the lease
                self.lost.set()
            await self._tell()

    def _over(self) -> bool:
        return self._stored.released and self._sent == self._submitted

    async def _due(self) -> None:
        while True:
            limit = self._settings.heartbeat_seconds
            if self._progress_is_new:
                limit = min(limit, self._settings.progress_write_seconds)
            wait = 0 if self._sent < self._submitted else limit - self.age_seconds
            if wait <= 0:
                return
            self._wake.clear()
            await set_within(self._wake, wait)

    async def _write_or_journal(self) -> None:
        try:
            await self._write()
            self._failures, self._trouble = 0, None
            await self._clear_journal()
        except StorageFailure as error:
            self._failures += 1
            self._progress_is_new = True  # if any was, it still is
            self._trouble = Trouble(code=error.code, message=str(error))
            if self._failures == 1:
                log.warning("the store is away, changes wait here: %s", error)
            await self._journal()
            jitter = random.uniform(0.5, 1)  # noqa: S311 - no secret
            await asyncio.sleep(min(2.0, 0.1 * 2 ** min(self._failures, 5)) * jitter)

    async def _write(self) -> None:
        """Write the desired record on top of what this worker wrote last.

        Raises:
            StorageUnavailable, StorageMisconfigured: whether it arrived is unknown.
        """
        sending, self._progress_is_new = self._submitted, False
        record = self._next()
        try:
            version = await self._store.replace(
                record_key(record.process_id), record.encode(), self._version
            )
        except ObjectChanged:
            await self._look_again(sending)
            return
        self._sent = sending
        await self._took(record, version)

    async def _look_again(self, sending: int) -> None:
        """Another version is there: mine, from a write whose answer was lost, or a new owner's."""
        try:
            found = await self._store.get(record_key(self._stored.process_id))
        except ObjectNotFound:
            self.lost.set()
            return
        try:
            record = decode_record(self._stored.process_id, found.data)
        except RecordUnreadable as error:  # not by this version, so not mine
            log.warning("lost: %s", error)
            self.lost.set()
            return
        if record.writer != self._stored.writer:
            log.warning("lost to worker %s", record.writer.worker_id)
            self.lost.set()
            return
        if record == self._desired.written(record.updated_at, revision=record.revision):
            self._sent = sending
        else:
            self._progress_is_new = True
        await self._took(record, found.version)

    async def _took(self, record: Record, version: str) -> None:
        if record.released and not self._stored.released:
            self._count_end(record)
        self._stored, self._version = record, version
        self._written_at = time.monotonic()
        await self._keep_copy()

    async def _keep_copy(self) -> None:
        await self._cache.keep(
            Copy(
                record=self._stored,
                version=self._version,
                age_seconds=self.age_seconds,
                seen_at=time.time(),
            )
        )

    async def _journal(self) -> None:
        await self._keep_copy()
        record = self._next()
        proof = self._proofs.proof_of(record.writer.nonce) if record.released else ""
        await self._cache.journal(Unsent(record=record, proof=proof))
        self._journalled = True

    async def _clear_journal(self) -> None:
        """Once nothing is unsent, or what is must not be sent any more."""
        if self._journalled and (self._sent == self._submitted or self.lost.is_set()):
            await self._cache.sent(self._stored.process_id)
            self._journalled = False

    def _next(self) -> Record:
        return self._desired.written(self.clock(), revision=self._stored.revision + 1)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


class Leases:
    """Takes leases for one worker, and holds what all of them are written with."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        cache: RecordCache,
        *,
        meter: Meter | None = None,
        redactor: Redactor | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.store = store
        self.settings = settings
        self.cache = cache
        self.meter = meter or Meter(price_per_hour=settings.price_per_hour)
        self.proofs = Proofs()
        #: Knows this worker's secrets.
        self.redactor = redactor or Redactor()
        #: Wall-clock time, for what is written down. No decision depends on it.
        self.clock = clock

    def new_writer(self) -> Writer:
        """A name to sign one claim with: this worker's, and a nonce of its own."""
        return Writer(worker_id=self.settings.worker_id, nonce=self.proofs.new_nonce())

    async def create(self, record: Record) -> Lease:
        """Begin a process that does not exist.

        Raises:
            ObjectExists: it does.
        """
        version = await self.store.create(record_key(record.process_id), record.encode())
        return Lease(self, record, version, self.clock)

    async def claim(self, record: Record, version: str, clock: Clock) -> Lease:
        """Take a process over by writing `record` on top of exactly `version`.

        Raises:
            ObjectChanged: another writer was faster.
        """
        record = record.written(clock())
        key = record_key(record.process_id)
        version = await self.store.replace(key, record.encode(), version)
        return Lease(self, record, version, clock)

    def resume(self, record: Record, version: str, clock: Clock) -> Lease:
        """Go on with a lease that this worker took without being told so."""
        return Lease(self, record, version, clock)

    def count_end(self, record: Record) -> None:
        """Count an end that the store has taken from here and did not hold before."""
        code = record.failure.code if record.failure else None
        self.meter.ended(record.kind, record.status, code)


class LeaseWatch:
    """Tells when an owner is gone, from outside.

    Two things must hold. The record has not been written for a lease, by the store's own clock or,
    if the store does not tell its age, because we watched it unchanged for as long. And it stayed
    that way while we watched it for `takeover_watch_seconds`, with the store answering us all
    along: after an outage every record looks old, and the owners who sat it out need a moment to
    write again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._version: str | None = None
        self._since = 0.0

    def saw(self, version: str, age_seconds: float | None) -> bool:
        """Take in a fresh read; True if the owner is gone."""
        if version != self._version:
            self._version, self._since = version, time.monotonic()
        watched = time.monotonic() - self._since
        age = watched if age_seconds is None else age_seconds
        return (
            age > self._settings.lease_seconds and watched >= self._settings.takeover_watch_seconds
        )

    def saw_nothing(self) -> None:
        """The store did not answer: begin again."""
        self._version = None
