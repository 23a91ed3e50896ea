"""Stores full of what is old, and cleaners to whom it is: no test waits for a day to pass.

To a cleaner here it is `LATER_DAYS` from now: its store says so of everything that it reads. What
is seeded says when it ended as seen from there, so that it works on any store.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from attempts.archive import archive_row
from inputs.touches import Touches
from process_manager import new_leases
from records.index import index_key
from records.keys import record_key
from records.lease import Leases
from records.record import Record, Status, Writer, new_record
from retention.clean_run import DAY, CleanReport
from retention.cleaner import clean
from retention.last_clean import KEY as LOCK
from tests.faulty_store import FaultyStore
from tests.kit import settings
from utils import new_nonce, utc_now

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from storage import Store

LATER_DAYS = 100.0


class LaterStore(FaultyStore):
    """To whoever reads through it, everything is old but what was written through it."""

    def __init__(self, behind: Store, days: float) -> None:
        super().__init__(behind)
        self._later_seconds = days * DAY

    async def get(self, key: str, **options: Any) -> Any:
        found = await super().get(key, **options)
        if self.timeless or (key != LOCK and self.asked("create", "replace", "put", key=key)):
            return found
        return found._replace(age_seconds=found.age_seconds + self._later_seconds)


def days_ago(days: float) -> Any:
    """As a cleaner counts, to whom it is later."""
    return utc_now() + timedelta(days=LATER_DAYS - days)


def ended(
    process_id: str,
    days: float,
    *,
    kind: str = "sleep",
    status: Status = Status.COMPLETED,
    lasted_days: float = 0,
) -> Record:
    """The record of a process that ended so long ago; `running`: was written then for the last
    time."""
    writer = Writer(worker_id="w", nonce=new_nonce())
    record = new_record(
        process_id=process_id,
        kind=kind,
        params={},
        request_hash="h",
        writer=writer,
        now=days_ago(days + lasted_days),
    ).running(days_ago(days + lasted_days))
    now = days_ago(days)
    match status:
        case Status.COMPLETED:
            record = record.completed(now, None)
        case Status.INTERRUPTED:
            record = record.interrupted(now, reason="drained")
    return record.written(now)


async def seed(store: Store, record: Record, *, files: int = 1) -> None:
    """All that such a process leaves in a store."""
    puts = [(record_key(record.process_id), record.encode()), (index_key(record), b"")]
    puts += [
        (f"processes/{record.process_id}/attempts/1/artifacts/{n}", b"abc") for n in range(files)
    ]
    if record.kind == "archive":
        puts.append((archive_row(record), b""))
    await asyncio.gather(*(store.put(key, data) for key, data in puts))


def seed_folder(root: Path, records: list[Record]) -> None:
    """The same, of thousands, in the folder of a `LocalStore`; without files."""
    for record in records:
        for key, data in (
            (record_key(record.process_id), record.encode()),
            (index_key(record), b""),
        ):
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


async def bring(store: Store, folder: str) -> None:
    """An input folder that was used `LATER_DAYS` before the cleaner comes."""
    await Touches(store).touch(folder)
    for name in ("a", "b/c", ".worker/manifest.json"):
        await store.put(f"inputs/{folder}/{name}", b"12")


async def contents(store: Store, prefix: str = "") -> dict[str, tuple[bytes, datetime]]:
    """Everything, by key: what it holds and when it was written. Without the cleaner's lock."""
    rows = (await store.list(prefix)).objects
    return {
        row.key: ((await store.get(row.key)).data, row.modified) for row in rows if row.key != LOCK
    }


def cleaner(store: Store, scratch: Path, *, later: float = LATER_DAYS, **changes: Any) -> Leases:
    """A worker that may clean, so many days later; its `store` is a `LaterStore`."""
    later_store = LaterStore(store, later)
    chosen = {"process_days": 30, "input_days": 20} | changes
    later_clock = lambda: utc_now() + timedelta(days=later)  # noqa: E731
    return new_leases(later_store, settings(scratch, **chosen), clock=later_clock)  # type: ignore[arg-type]


async def cleaned(leases: Leases, *, dry_run: bool = False) -> dict[str, int]:
    """Clean once; how many of each class went."""
    report = CleanReport(dry_run=dry_run)
    await clean(leases, report)
    return report.counts()
