"""Processes, archives among them, that ended long ago: which they are, and how they go.

The index is newest first, so what may have expired is its end; archives expire earlier and have
rows by day. Rows only lead there: the record says whether it has expired, and is erased by
compare-and-swap, so that a delivery which resumes it and its removal cannot both succeed. Then go
the files, and in the end the rows, by which a run that was cut short is resumed. A day later the
erased record goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from processes.archive import AGES as ARCHIVE_AGES
from processes.archive import ARCHIVE
from processes.index import rows_before
from processes.reading import RecordUnreadable, UnknownProcess, decode_record, read_stored
from processes.record import Record, cancel_key, record_key
from processes.removal import ERASED_AGES, erase, erased_age_key, files_of, leads_of
from settings import Settings
from storage import Listed, ObjectChanged
from upkeep.clean_run import DAY, CleanRun, in_batches, rows_of_days, side_by_side
from upkeep.store_lock import Stopwatch

#: A record that was not ended and not rewritten for less than this is not touched, whatever the
#: settings say: its owner may sit out an outage of the store.
LOST_SECONDS = DAY
#: An erased record stays for so long.
ERASED_SECONDS = DAY


class Candidate(NamedTuple):
    """A process that may have expired, and the keys of what led to it."""

    process_id: str
    leads: list[str]


class Doomed(NamedTuple):
    """What is to go."""

    #: Erased by now; None: there is none, or another one than the leads are of.
    record: Record | None
    files: list[Listed]
    leads: list[str]


def is_expired(record: Record, age_seconds: float | None, now: float, settings: Settings) -> bool:
    """Whether a process ended too long ago. `now` and the age of its record by the store's clock.

    Both must say so: what its worker wrote down, and the store. Either clock may have been wrong.
    A record of unknown age has not expired.
    """
    days = settings.archive_days if record.kind == ARCHIVE else settings.process_days
    if days is None or age_seconds is None:
        return False
    ended = record.finished_at or record.updated_at
    lasts = days * DAY if record.released else max(days * DAY, LOST_SECONDS)
    return min(age_seconds, now - ended.timestamp()) > lasts


async def remove_expired_processes(run: CleanRun) -> None:
    """Those at the end of the index."""
    if run.settings.process_days is None:
        return
    async for batch in in_batches(_end_of_index(run, run.settings.process_days)):
        await remove_expired(run, batch)


async def remove_expired_archives(run: CleanRun) -> None:
    """Those that the rows of their days lead to."""
    if run.settings.archive_days is None:
        return
    rows = rows_of_days(run, ARCHIVE_AGES, before=run.day(run.settings.archive_days))
    async for batch in in_batches(rows):
        await remove_expired(run, [Candidate(key.rpartition("/")[2], [key]) for key in batch])


async def _end_of_index(run: CleanRun, days: float) -> AsyncIterator[Candidate]:
    archive_days = run.settings.archive_days
    async for rows in rows_before(run.store, run.moment(days)):
        if rows[0].kind == ARCHIVE and (
            archive_days is None or rows[0].created_at > run.moment(archive_days)
        ):
            continue
        yield Candidate(rows[0].process_id, [row.key for row in rows])


async def remove_expired(run: CleanRun, candidates: list[Candidate]) -> None:
    """Remove those that have expired; together, as that takes fewer requests."""
    await run.still_mine()
    left = [each for each in candidates if each.process_id not in run.gone]
    seen = await side_by_side(_erase_if_expired(run, each) for each in left)
    doomed = [each for each in seen if each is not None]
    gone = [each.record for each in doomed if each.record is not None]
    await run.delete([file.key for each in doomed for file in each.files])
    await side_by_side(run.put(erased_age_key(r.process_id, run.today)) for r in gone)
    leads = [lead for each in doomed for lead in each.leads]
    await run.delete([*leads, *(lead for record in gone for lead in leads_of(record))])
    for each in doomed:
        await _report(run, each)


async def _report(run: CleanRun, gone: Doomed) -> None:
    if gone.record is None:
        for lead in gone.leads:
            run.report.add("rows that led nowhere", lead, objects=1)
        return
    run.gone.add(gone.record.process_id)
    if not run.dry:
        await run.leases.cache.drop(gone.record.process_id)
    run.report.add(
        "archives" if gone.record.kind == ARCHIVE else "processes",
        gone.record.process_id,
        objects=len(gone.files),
        size=sum(file.size for file in gone.files),
    )


async def _erase_if_expired(run: CleanRun, candidate: Candidate) -> Doomed | None:
    """What is to go now; None: nothing. An erased record whose removal was cut short goes on."""
    try:
        stored = await read_stored(run.store, candidate.process_id)
        record = decode_record(candidate.process_id, stored.data)
    except UnknownProcess:
        return Doomed(None, [], candidate.leads)
    except RecordUnreadable:  # of a newer worker, perhaps; it is not for us to say
        return None
    if others := set(candidate.leads).difference(leads_of(record)):
        return Doomed(None, [], [*others])  # its id was used again since
    if not record.deleted:
        if not is_expired(record, stored.age_seconds, run.now, run.settings):
            return None
        if not run.dry:
            await run.still_mine()
            try:
                await erase(run.leases, record, stored.version)
            except ObjectChanged:  # it was resumed just now
                return None
    return Doomed(record, await files_of(run.store, record), candidate.leads)


async def bury_erased(run: CleanRun) -> None:
    """Remove records that were erased a day ago, and the rows that lead to them."""
    rows = rows_of_days(run, ERASED_AGES, before=run.day(ERASED_SECONDS / DAY))
    async for batch in in_batches(rows):
        if await bury(run, [key.rpartition("/")[2] for key in batch]):
            await run.delete(batch)


async def bury(run: CleanRun, process_ids: list[str]) -> bool:
    """Remove those of these records that were erased a day ago and still are.

    False: there was no saying whether they still are; they stay for another run. A record that was
    looked at is removed at once or not at all: in between its id might be used again.
    """
    await run.still_mine()
    seen = Stopwatch()
    left = [process_id for process_id in process_ids if process_id not in run.gone]
    found = await side_by_side(_erased(run, process_id) for process_id in left)
    erased = [record for record in found if record is not None]
    keys = [record_key(record.process_id) for record in erased]
    keys += [key for r in erased for key in (cancel_key(r.process_id), *leads_of(r))]
    if not await run.delete_if_just_seen(keys, seen):
        return False
    for record in erased:
        run.gone.add(record.process_id)
        run.report.add("erased records", record.process_id, objects=1)
    return True


async def _erased(run: CleanRun, process_id: str) -> Record | None:
    """The record, if it was erased a day ago."""
    try:
        stored = await read_stored(run.store, process_id)
        record = decode_record(process_id, stored.data)
    except (UnknownProcess, RecordUnreadable):
        return None
    return record if record.deleted and stored.older_than(ERASED_SECONDS) else None
