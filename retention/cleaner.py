"""What is removed, in which order, and when: usually by one worker of a store at a time."""

from __future__ import annotations

import asyncio
import logging
import random

from records.lease import Leases
from retention.clean_run import DAY, CleanReport, CleanRun
from retention.expired_inputs import remove_expired_folders
from retention.expired_processes import bury_erased, remove_expired_processes
from retention.last_clean import LastClean
from retention.scratch import tidy_scratch
from retention.sweep import sweep_processes
from storage import StorageUnavailable
from stores.prefixes import list_all
from utils import WorkerError

log = logging.getLogger(__name__)

#: A worker's first look comes within this time: most do not live for an hour.
FIRST_LOOK_SECONDS = 60.0


async def clean(leases: Leases, report: CleanReport) -> None:
    """Remove what has expired, and say in `report` what went; if that is of a dry run, what would.

    May be broken off anywhere: the next run goes on. May run beside another one.

    Raises:
        StorageUnavailable, StorageMisconfigured: the store does not answer any more.
    """
    last = LastClean(leases.store)
    await last.look()
    if not report.dry_run and not await last.write():
        await last.look()  # another worker began just now
    await _clean(leases, report, last)


async def clean_if_due(leases: Leases, report: CleanReport) -> None:
    """As `clean`, unless a worker has within `clean_seconds`: then this is one request.

    Raises: as `clean`.
    """
    last = LastClean(leases.store)
    await last.look()
    age = last.age_seconds
    due = not last.exists if age is None else age >= leases.settings.clean_seconds
    if due and await last.write():
        await _clean(leases, report, last)


async def _clean(leases: Leases, report: CleanReport, last: LastClean) -> None:
    if last.now is None and not report.dry_run:
        await last.look()  # now that it is there, it tells the time by the store's clock
    if last.now is None and last.exists:
        raise StorageUnavailable("the store does not tell the time, so nothing can have expired")
    now = leases.clock().timestamp() if last.now is None else last.now
    run = CleanRun(leases, report, last, now)
    await remove_expired_processes(run)
    await remove_expired_folders(run)
    await bury_erased(run)
    await _remove_leftovers(run)
    await sweep_processes(run)


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

    async def keep(self) -> None:
        """Until cancelled. Logs errors of the store and the disk, and goes on."""
        await self._tidy()
        every = self._settings.clean_seconds
        if every == 0:
            return
        await asyncio.sleep(random.uniform(0, min(every, FIRST_LOOK_SECONDS)))  # noqa: S311
        while True:
            await self._clean()
            await asyncio.sleep(every * random.uniform(0.9, 1.1))  # noqa: S311
            await self._tidy()

    async def _clean(self) -> None:
        report = CleanReport()
        try:
            await clean_if_due(self._leases, report)
        except WorkerError as error:
            log.warning("cleaning was broken off: %s", error)
        except Exception:
            log.exception("cleaning was broken off")
        finally:
            if report.tallies:
                log.info("cleaned", extra={"removed": report.counts()})

    async def _tidy(self) -> None:
        try:
            await asyncio.to_thread(tidy_scratch, self._settings, CleanReport())
        except Exception:
            log.exception("the scratch disk was not tidied")
