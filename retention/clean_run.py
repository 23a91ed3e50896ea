"""One run of the cleaner: its report, and the ways in which it changes the store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from records.lease import Leases
from retention.last_clean import LastClean, SweepPlace
from storage import StorageMisconfigured, StorageUnavailable
from stores.prefixes import delete_each
from utils import Stopwatch, WorkerError, side_by_side

log = logging.getLogger(__name__)
T = TypeVar("T")

DAY = 86400.0
#: Things that are looked at together, and whose objects are removed together.
AT_ONCE = 16
#: A run looks at no more of one sort: 200,000 take 13 minutes at two requests of 30 ms each.
MOST = 200_000
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
        tally.count += 1
        tally.objects += objects
        tally.bytes += size
        if len(tally.names) < MAX_NAMES:
            tally.names.append(name)
        if self.on_change:
            self.on_change()

    def counts(self) -> dict[str, int]:
        return {what: tally.count for what, tally in self.tallies.items()}


class CleanRun:
    """What the parts of a run are handed. A dry one changes nothing."""

    def __init__(self, leases: Leases, report: CleanReport, last: LastClean, now: float) -> None:
        """`now` is in seconds since the epoch, by the store's clock."""
        self.leases = leases
        self.store = leases.store
        self.settings = leases.settings
        self.report = report
        self.dry = report.dry_run
        self.last = last
        self.now = now
        #: Ids of processes that went, or their erased records: in a dry run they are still there,
        #: and met again.
        self.gone: set[str] = set()

    def moment(self, days_ago: float) -> datetime:
        return datetime.fromtimestamp(self.now - days_ago * DAY, UTC)

    async def delete(self, keys: list[str]) -> bool:
        """Remove these; False: the store refuses some of them for good, which are reported."""
        if not keys or self.dry:
            return True
        refused = await delete_each(self.store, keys)
        for key, error in refused.items():
            self.refused(key, error)
        return not refused

    def refused(self, name: str, error: WorkerError) -> None:
        """Report what the store refuses to remove, as by a lock on an object or by a policy."""
        log.warning("%s cannot be removed: %s", name, error)
        self.report.add("refused by the store", name)

    async def delete_if_just_seen(self, keys: list[str], seen: Stopwatch) -> bool:
        """Remove what was looked at when `seen` was started; False: as `delete`, or too late."""
        return seen.seconds() <= BREATH_SECONDS and await self.delete(keys)

    async def came_to(self, sweep: str, place: SweepPlace) -> bool:
        """Write down how far a sweep has come; False: another worker cleans as well."""
        return self.dry or await self.last.write(**{sweep: place})


async def each_apart(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of those calls that have one. An error in one object does not stop the others.

    Raises:
        StorageUnavailable: that concerns all of them.
    """
    return [each for found in await side_by_side(_apart(call) for call in calls) for each in found]


async def _apart(call: Coroutine[Any, Any, T]) -> list[T]:
    try:
        return [await call]
    except StorageUnavailable:
        raise
    except StorageMisconfigured as error:
        log.warning("the store refuses an object, which is passed over in cleaning: %s", error)
        return []
    except Exception:
        log.exception("something was passed over in cleaning")
        return []


async def in_batches(
    items: AsyncIterable[T], size: int = AT_ONCE, most: int = MOST
) -> AsyncIterator[list[T]]:
    """Lists of `size` items, `most` items together."""
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            most -= size
            batch = []
            if most <= 0:
                return
    if batch:
        yield batch
