"""One run of the cleaner: what it did or would do, and the only way in which it changes the store.

Every change is preceded by a look at the lock, so that who has lost it stops before the next one.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from processes.lease import Leases
from stores.prefixes import list_all
from upkeep.store_lock import Stopwatch, StoreLock
from utils import day_of, together

T = TypeVar("T")

DAY = 86400.0
#: Things that are looked at together, and whose objects are removed together.
AT_ONCE = 16
#: Between looking at an object and removing it by name lies no more than this.
BREATH_SECONDS = 5.0
#: Names that a report keeps, of each class.
MAX_NAMES = 10_000


@dataclass
class Tally:
    """What was removed of one class, or would be."""

    count: int = 0
    objects: int = 0
    bytes: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class CleanReport:
    """What a run has done so far; of a dry run, what another one would do."""

    dry_run: bool = False
    tallies: dict[str, Tally] = field(default_factory=dict)
    #: Called with every thing that is counted.
    on_change: Callable[[], None] | None = None

    def add(self, what: str, name: str, *, objects: int = 0, size: int = 0) -> None:
        tally = self.tallies.setdefault(what, Tally())
        tally.count, tally.objects, tally.bytes = (
            tally.count + 1, tally.objects + objects, tally.bytes + size
        )  # fmt: skip
        if len(tally.names) < MAX_NAMES:
            tally.names.append(name)
        if self.on_change:
            self.on_change()

    def counts(self) -> dict[str, int]:
        return {what: tally.count for what, tally in self.tallies.items()}


class CleanRun:
    """What the parts of a run are handed. Without a lock it is a dry one and changes nothing."""

    def __init__(
        self, leases: Leases, report: CleanReport, lock: StoreLock | None, now: float
    ) -> None:
        """`now` is in seconds since the epoch, by the store's clock."""
        self.leases = leases
        self.store = leases.store
        self.settings = leases.settings
        self.report = report
        self.now = now
        self.lock = lock
        #: Ids of processes that went, or their erased records: in a dry run they are still there,
        #: and met again.
        self.gone: set[str] = set()

    @property
    def dry(self) -> bool:
        return self.lock is None

    @property
    def today(self) -> str:
        return self.day(0)

    def day(self, days_ago: float) -> str:
        return day_of(self.moment(days_ago))

    def moment(self, days_ago: float) -> datetime:
        return datetime.fromtimestamp(self.now - days_ago * DAY, UTC)

    async def still_mine(self) -> None:
        """Raises LockLost."""
        if self.lock is not None:
            await self.lock.still_mine()

    async def delete(self, keys: list[str]) -> None:
        if self.lock is not None and keys:
            await self.lock.still_mine()
            await self.store.delete(keys)

    async def put(self, key: str) -> None:
        """A row."""
        if self.lock is not None:
            await self.lock.still_mine()
            await self.store.put(key, b"")

    async def delete_if_just_seen(self, keys: list[str], seen: Stopwatch) -> bool:
        """Remove what was looked at when `seen` was started, unless that is too long ago."""
        await self.still_mine()
        if seen.seconds() > BREATH_SECONDS:
            return False
        if not self.dry and keys:
            await self.store.delete(keys)
        return True


async def side_by_side(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return. If one fails the others are stopped, and nothing of them goes on."""
    async with together() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


async def in_batches(items: AsyncIterable[T], size: int = AT_ONCE) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def rows_of_days(run: CleanRun, prefix: str, before: str) -> AsyncIterator[str]:
    """The keys of the rows below `prefix` of all days before that one, oldest first.

    What is younger costs nothing: one LIST shows the days.
    """
    after: str | None = None
    while True:
        page = await run.store.list_folders(prefix, start_after=after)
        for day in page.names:
            if day >= before:
                return
            async for row in list_all(run.store, f"{prefix}{day}/"):
                yield row.key
        if page.next is None:
            return
        after = page.next
