"""`rp_handler.py clean`: remove what has expired, by hand, and say what it was."""

from __future__ import annotations

import asyncio
import sys

from tqdm import tqdm

from process_manager import new_leases
from records.lease import Leases
from retention.clean_run import CleanReport
from retention.cleaner import clean
from retention.scratch import tidy_scratch
from stores.open import open_store
from utils import WorkerError
from worker.meter import Meter
from worker.redaction import Redactor
from worker.settings import Settings

#: Names of each class that a dry run prints.
MAX_NAMES = 20


def clean_by_hand(settings: Settings, redactor: Redactor, *, dry_run: bool) -> int:
    """Clean once, with a bar at a terminal and a table in the end. Returns the exit code.

    Ctrl-C breaks it off; the table says how far it came, and the next run goes on.
    """
    report = CleanReport(dry_run=dry_run)
    code = 1
    try:
        asyncio.run(_clean(settings, redactor, report))
        code = 0
    except KeyboardInterrupt:
        _say("broken off; the next run goes on")
    except WorkerError as error:
        _say(f"{error} ({error.code})")
    _print_table(report)
    return code


async def _clean(settings: Settings, redactor: Redactor, report: CleanReport) -> None:
    store = open_store(settings, Meter())
    leases = new_leases(store, settings, redactor=redactor)
    try:
        with tqdm(
            desc="looking", bar_format="{desc} [{elapsed}]", disable=not sys.stderr.isatty()
        ) as bar:
            report.on_change = lambda: bar.set_description_str(_so_far(report))
            await _clean_all(leases, report)
    finally:
        await store.close()


async def _clean_all(leases: Leases, report: CleanReport) -> None:
    await asyncio.to_thread(tidy_scratch, leases.settings, report)
    await clean(leases, report)


def _so_far(report: CleanReport) -> str:
    verb = "would remove" if report.dry_run else "removed"
    counts = ", ".join(f"{count} {what}" for what, count in report.counts().items())
    return f"{verb} {counts}"


def _print_table(report: CleanReport) -> None:
    verb = "would be removed" if report.dry_run else "removed"
    if not report.tallies:
        _say(f"nothing {verb}")
        return
    _say(f"{verb + ':':<26}{'how many':>10}{'objects':>10}{'bytes':>16}")
    for what, tally in sorted(report.tallies.items()):
        _say(f"  {what:<24}{tally.count:>10}{tally.objects:>10}{tally.bytes:>16,}")
        if report.dry_run:
            for name in tally.names[:MAX_NAMES]:
                _say(f"    {name}")
            if tally.count > MAX_NAMES:
                _say(f"    ... and {tally.count - MAX_NAMES} more")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is a command's output
