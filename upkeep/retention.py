"""What is removed, in which order, and when: one cleaner at a time over all workers of a store."""

from __future__ import annotations

import asyncio
import logging
import random

from processes.lease import Leases
from storage import StorageUnavailable
from stores.prefixes import list_all
from upkeep.clean_run import DAY, CleanReport, CleanRun
from upkeep.expired_inputs import remove_expired_folders, sweep_folders
from upkeep.expired_processes import (
    bury_erased,
    remove_expired_archives,
    remove_expired_processes,
)
from upkeep.scratch import tidy_scratch
from upkeep.store_lock import StoreLock
from upkeep.sweep import sweep_processes
from utils import WorkerError

log = logging.getLogger(__name__)

#: The name of the lock.
RETENTION = "retention"
#: A worker's first look comes within this time: most do not live for an hour.
FIRST_LOOK_SECONDS = 60.0
#: A worker that leaves does not wait longer for its cleaner to let go of the lock.
LEAVE_SECONDS = 1.0


class LockHeld(WorkerError):
    """Another worker cleans just now."""

    code = "lock_held"
    retryable = True


async def clean(leases: Leases, report: CleanReport) -> None:
    """Remove what has expired, and say in `report` what went; if that is of a dry run, what would.

    May be broken off anywhere, by whatever: the next run goes on. A dry run takes no lock.

    Raises:
        LockHeld: another worker cleans just now.
        LockLost: one has taken over.
        StorageUnavailable, StorageMisconfigured: the store does not answer any more.
    """
    lock = StoreLock(leases.store, leases.settings, RETENTION)
    if report.dry_run:
        seen = await lock.look()
        # Without a lock nobody has cleaned yet, and there is no clock of the store to be read.
        now = seen.now if seen else leases.clock().timestamp()
        cursors = seen.document.cursors if seen else {}
        await _clean(CleanRun(leases, report, None, _known(now)), {**cursors})
        return
    if not await lock.take():
        raise LockHeld("another worker cleans just now")
    try:
        seen = await lock.look()
        assert seen is not None
        await _clean(CleanRun(leases, report, lock, _known(seen.now)), lock.cursors)
    finally:
        await lock.release()


def _known(now: float | None) -> float:
    """Raises StorageUnavailable if the store does not tell the time: then nothing has expired."""
    if now is None:
        raise StorageUnavailable("the store does not tell the time, so nothing can have expired")
    return now


async def _clean(run: CleanRun, cursors: dict[str, str]) -> None:
    await remove_expired_processes(run)
    await remove_expired_archives(run)
    await remove_expired_folders(run)
    await bury_erased(run)
    await _remove_leftovers(run)
    await sweep_processes(run, cursors)
    await sweep_folders(run, cursors)


async def _remove_leftovers(run: CleanRun) -> None:
    """What workers that died have left beside processes: probes of the store, their figures."""
    for prefix, beginnings in (
        ("locks/", ("locks/check-", "locks/probe-")),
        ("workers/", ("workers/",)),
    ):
        old = [
            row
            async for row in list_all(run.store, prefix)
            if row.key.startswith(beginnings) and run.now - row.modified > DAY
        ]
        await run.delete([row.key for row in old])
        for row in old:
            run.report.add("workers' leftovers", row.key, objects=1, size=row.size)


class Cleaner:
    """Cleans in the background of a worker, whenever no worker has for `clean_seconds`."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._settings = leases.settings
        self._keeping: asyncio.Task[None] | None = None

    async def keep(self) -> None:
        """Until cancelled. Never raises what a store or a disk can do to us."""
        self._keeping = asyncio.current_task()
        await self._tidy()
        every = self._settings.clean_seconds
        if every == 0:
            return
        await asyncio.sleep(random.uniform(0, min(every, FIRST_LOOK_SECONDS)))  # noqa: S311
        while True:
            try:
                await self._clean_if_due()
            except WorkerError as error:
                log.warning("cleaning was broken off: %s", error)
            except Exception:
                log.exception("cleaning was broken off")
            await asyncio.sleep(every * random.uniform(0.9, 1.1))  # noqa: S311
            await self._tidy()

    async def leave(self) -> None:
        """Break it off and let go of the lock, or the next cleaner waits until that expires."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping], timeout=LEAVE_SECONDS)

    async def _clean_if_due(self) -> None:
        """One request where another worker has cleaned within the time."""
        seen = await StoreLock(self._leases.store, self._settings, RETENTION).look()
        if seen is not None:
            age = seen.age_seconds
            if age is None:  # nothing can have expired
                return
            if not seen.document.holder and age < self._settings.clean_seconds:
                return
        report = CleanReport()
        try:
            await clean(self._leases, report)
        except LockHeld:
            return
        finally:
            if report.tallies:
                log.info("cleaned", extra={"removed": report.counts()})

    async def _tidy(self) -> None:
        try:
            await asyncio.to_thread(tidy_scratch, self._settings, CleanReport())
        except Exception:
            log.exception("the scratch disk was not tidied")
