"""One holder at a time over all workers: a small document under `locks/`, by compare-and-swap.

Its holder rewrites it while it works, as an owner does with a record, and the same times apply:
every `heartbeat_seconds`, before the next step. Who finds it not rewritten for `lease_seconds`, by
the store's clock, and watches it stay so for `takeover_watch_seconds`, takes it. Whoever loses a
compare-and-swap has lost the lock and stops at once. The lock saves work and is no fence: what its
holder does must do no harm if another one does it too.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from processes.lease import AWAY, LeaseWatch
from settings import Settings
from storage import ObjectChanged, ObjectExists, ObjectNotFound, Store
from utils import WorkerError, new_nonce

#: How often a lock that somebody else holds is looked at.
LOOK_SECONDS = 1.0


class Stopwatch:
    """How long ago it was made, also if this machine was frozen meanwhile."""

    def __init__(self) -> None:
        self._began, self._began_by_wall = time.monotonic(), time.time()

    def seconds(self) -> float:
        """By the clock that went further: one of them may not count what we were frozen for."""
        return max(time.monotonic() - self._began, abs(time.time() - self._began_by_wall))


class LockLost(WorkerError):
    """Another worker has taken the lock."""

    code = "lock_lost"


class LockDocument(BaseModel, frozen=True, extra="ignore"):
    """The lock as it is stored."""

    #: A worker and a nonce; None: nobody works, and it was written when the last one finished.
    holder: str | None = None
    #: +1 with every write, so that no two versions are the same bytes.
    beat: int = 0
    #: How far the holders have come with what takes more than one run.
    cursors: dict[str, str] = {}


class Seen(NamedTuple):
    """The lock as it was read."""

    document: LockDocument
    version: str
    #: Since it was written, and when it was read, both by the store's clock; None: unknown.
    age_seconds: float | None
    now: float | None


class StoreLock:
    """A lock that this worker may come to hold."""

    def __init__(self, store: Store, settings: Settings, name: str) -> None:
        self._store = store
        self._settings = settings
        self._key = f"locks/{name}"
        self._me = f"{settings.worker_id} {new_nonce()}"
        self._document = LockDocument()
        self._version = ""
        self._since_write = Stopwatch()
        self._turn = asyncio.Lock()

    @property
    def cursors(self) -> dict[str, str]:
        """As the last holder left them; of who holds the lock, to be changed."""
        return self._document.cursors

    async def look(self) -> Seen | None:
        """The lock, whoever holds it; None: nobody ever has. One request."""
        try:
            stored = await self._store.get(self._key)
        except ObjectNotFound:
            return None
        try:
            document = LockDocument.model_validate_json(stored.data)
        except ValidationError:
            document = LockDocument()  # not ours, or of another version: nobody's
        return Seen(document, stored.version, stored.age_seconds, stored.read_at)

    async def take(self) -> bool:
        """Come to hold it; False as soon as it is clear that somebody else does.

        A lock whose holder seems gone is watched first, which takes as long as it takes to claim a
        process.
        """
        watch, first = LeaseWatch(self._settings), None
        while True:
            seen = await self.look()
            free = seen is None or seen.document.holder is None
            if free or (seen and watch.saw(seen.version, seen.age_seconds)):
                return await self._take(seen)
            assert seen is not None
            if first not in (None, seen.version):
                return False
            first = seen.version
            await asyncio.sleep(LOOK_SECONDS)

    async def _take(self, seen: Seen | None) -> bool:
        last = seen.document if seen else LockDocument()
        self._document = last.model_copy(update={"cursors": {**last.cursors}})
        self._version = seen.version if seen else ""
        with suppress(ObjectChanged, ObjectExists):
            await self._write(self._me)
            return True
        return False

    async def still_mine(self) -> None:
        """To be called before each step. A request only when a heartbeat is due.

        Raises:
            LockLost: another worker has it.
        """
        async with self._turn:
            if self._since_write.seconds() >= self._settings.heartbeat_seconds:
                await self._rewrite(self._me)

    async def release(self) -> None:
        """Let go of it, if it is still ours. A store that is away is no error: it expires."""
        with suppress(LockLost, *AWAY):
            async with self._turn:
                await self._rewrite(None)

    async def _rewrite(self, holder: str | None) -> None:
        try:
            await self._write(holder)
        except ObjectChanged:
            # Another one's, or my own last write, whose answer was lost.
            seen = await self.look()
            if seen is None or seen.document.holder != self._me:
                raise LockLost("another worker has taken the lock") from None
            self._version = seen.version
            try:
                await self._write(holder)
            except ObjectChanged:
                raise LockLost("another worker has taken the lock") from None

    async def _write(self, holder: str | None) -> None:
        beat = self._document.beat + 1
        document = self._document.model_copy(update={"holder": holder, "beat": beat})
        data = document.model_dump_json().encode()
        # Also if it fails: the same bytes again would count as written, and renew nothing.
        self._document = document
        since_write = Stopwatch()
        if self._version:
            self._version = await self._store.replace(self._key, data, self._version)
        else:
            self._version = await self._store.create(self._key, data)
        self._since_write = since_write
