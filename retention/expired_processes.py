"""Processes, archives among them, that ended long ago: which they are, and how they go.

Rows lead there, of the index or of `ages/`, newest first: what may have expired is the end of the
list. The record decides whether it has. It is erased by compare-and-swap, then its files go, then
its rows, by which a run that was cut short is resumed. A day later the erased record goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from attempts.archive import ARCHIVE
from processes.removal import ERASED_SECONDS, Found, files_of, leads_of, remove_all
from records.index import ARCHIVES, DELETED, PREFIX, Lead, leads_before
from records.keys import cancel_key, record_key
from records.reading import RecordUnreadable, UnknownProcess, decode_record, read_stored
from records.record import Record
from retention.clean_run import DAY, CleanRun, each_apart, in_batches
from storage import Listed, StorageMisconfigured
from utils import Stopwatch
from worker.settings import Settings

#: A record that was not ended and not rewritten for less than this is not touched, whatever the
#: settings say: its owner may sit out an outage of the store.
LOST_SECONDS = DAY


def is_expired(record: Record, age_seconds: float | None, now: float, settings: Settings) -> bool:
    """Whether a process ended too long ago. `now` and the age of its record by the store's clock.

    Both must say so: what its worker wrote down, and the store. Either clock may have been wrong.
    A record of unknown age has not expired.
    """
    days = _days(record.kind, settings)
    if days is None or age_seconds is None:
        return False
    ended = record.finished_at or record.updated_at
    lasts = days * DAY if record.released else max(days * DAY, LOST_SECONDS)
    return min(age_seconds, now - ended.timestamp()) > lasts


def _days(kind: str | None, settings: Settings) -> float | None:
    return settings.archive_days if kind == ARCHIVE else settings.process_days


async def remove_expired_processes(run: CleanRun) -> None:
    """Those that old rows lead to."""
    for prefix, days in (
        (PREFIX, run.settings.process_days),
        (ARCHIVES, run.settings.archive_days),
    ):
        if days is not None:
            async for batch in in_batches(_old_rows(run, prefix, days)):
                await _remove_expired(run, batch)


async def _old_rows(run: CleanRun, prefix: str, days: float) -> AsyncIterator[Lead]:
    async for lead in leads_before(run.store, prefix, run.moment(days)):
        kind_days = days if lead.kind is None else _days(lead.kind, run.settings)
        if kind_days is not None and lead.at <= run.moment(kind_days):
            yield lead


async def _remove_expired(run: CleanRun, leads: list[Lead]) -> None:
    """Remove those that have expired; together, as that takes fewer requests."""
    keys: dict[str, list[str]] = {}
    for lead in leads:
        if lead.process_id not in run.gone:
            keys.setdefault(lead.process_id, []).append(lead.key)
    found = await each_apart(_look_at(run, *each) for each in keys.items())
    await remove(run, [each for each in found if each is not None])


async def _look_at(run: CleanRun, process_id: str, leads: list[str]) -> Found | None:
    """The process, if it is to go; None: it stays. Rows of no process of this id go at once."""
    try:
        stored = await read_stored(run.store, process_id)
        record = decode_record(process_id, stored.data)
        strangers = set(leads).difference(leads_of(record))  # the id was used again since
    except UnknownProcess:
        strangers = set(leads)
    except RecordUnreadable:  # of a newer version, perhaps
        return None
    if strangers:
        if await run.delete([*strangers]):
            for lead in strangers:
                run.report.add("rows that led nowhere", lead, objects=1)
        return None
    if record.deleted or is_expired(record, stored.age_seconds, run.now, run.settings):
        return Found(record, stored.version)
    return None


async def remove(run: CleanRun, found: list[Found]) -> None:
    """Remove these processes, and go on with the removal of those that are erased already."""
    if run.dry:
        files = [await files_of(run.store, each.record) for each in found]
        removed = {each.record.process_id: f for each, f in zip(found, files, strict=True)}
    else:
        removed = await _remove_all(run, found)
    for record in (each.record for each in found):
        if record.process_id in removed:
            run.gone.add(record.process_id)
            _report(run, record, removed[record.process_id])


async def _remove_all(run: CleanRun, found: list[Found]) -> dict[str, list[Listed]]:
    """As `remove_all`; what the store refuses of one process does not stop the others."""
    try:
        return await remove_all(run.leases, found, run.moment(0))
    except StorageMisconfigured as error:
        if len(found) == 1:
            run.refused(f"process {found[0].record.process_id}", error)
            return {}
    again = await each_apart(_seen_again(run, each) for each in found)
    apart = [await _remove_all(run, [each]) for each in again if each]
    return {name: files for removed in apart for name, files in removed.items()}


async def _seen_again(run: CleanRun, found: Found) -> Found | None:
    """A process whose removal may have begun; None: it has gone on meanwhile, and stays."""
    stored = await read_stored(run.store, found.record.process_id)
    record = decode_record(found.record.process_id, stored.data)
    return (
        Found(record, stored.version) if record.deleted or stored.version == found.version else None
    )


def _report(run: CleanRun, record: Record, files: list[Listed]) -> None:
    what = "archives" if record.kind == ARCHIVE else "processes"
    size = sum(file.size for file in files)
    run.report.add(what, record.process_id, objects=len(files), size=size)


# ---- a day later


async def bury_erased(run: CleanRun) -> None:
    """Remove records that were erased a day ago, and the rows that lead to them."""
    rows = leads_before(run.store, DELETED, run.moment(ERASED_SECONDS / DAY))
    async for batch in in_batches(rows):
        await _bury(run, [lead for lead in batch if lead.process_id not in run.gone])


async def _bury(run: CleanRun, leads: list[Lead]) -> None:
    """A record that was looked at is removed at once, or by another run: in between its id might
    be used again."""
    seen = Stopwatch()
    found = await each_apart(_erased(run, lead) for lead in leads)
    keys = [key for _, keys in found for key in keys]
    if await run.delete_if_just_seen(keys, seen):
        for process_id, keys in found:
            if record_key(process_id) in keys:
                run.gone.add(process_id)
                run.report.add("erased records", process_id, objects=1)


async def _erased(run: CleanRun, lead: Lead) -> tuple[str, list[str]]:
    """The process, and the keys that are to go with this row; none: the row stays."""
    name = lead.process_id
    try:
        stored = await read_stored(run.store, name)
        record = decode_record(name, stored.data)
    except UnknownProcess:
        return name, [lead.key]
    except RecordUnreadable:
        return name, []
    if not record.deleted:
        return name, [lead.key]  # its id was used again
    if stored.age_seconds is None or stored.age_seconds <= ERASED_SECONDS:
        return name, []
    return name, [record_key(name), cancel_key(name), *leads_of(record), lead.key]
