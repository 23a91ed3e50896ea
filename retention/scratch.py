"""Removes files of dead workers from this machine's scratch disk. Blocking; best in a thread.

The disk may be shared, a home folder even: only entries with names that workers use are removed.
Jobs without Landlock may lay links on it: no part of a path below it is followed if it is a link.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from records.cache import COPY, PARTIAL_NAME
from retention.clean_run import DAY, CleanReport
from worker.beneath import open_folder, opened, remove_tree, tree_bytes
from worker.settings import Settings
from worker.workplace import FOLDER_NAME, RECORDS, STORE_NAME, WORK, held_if_abandoned

#: Copies of records are kept so long, unless processes expire earlier.
COPY_DAYS = 30.0
#: A writer that replaces a file does not pause for so long.
PARTIAL_SECONDS = DAY
#: An unsent write has another name: it stays until it is sent.
_COPY_NAME = re.compile(rf".*{re.escape(COPY)}|{PARTIAL_NAME.pattern}")


def tidy_scratch(settings: Settings, report: CleanReport) -> None:
    """Remove them, and say so in `report`. A disk that refuses is no error."""
    days = min(settings.process_days or COPY_DAYS, COPY_DAYS)
    with suppress(OSError), opened(settings.scratch_dir) as scratch:
        with suppress(OSError), _below(scratch, WORK) as work:
            _tidy_work(work, report)
        with suppress(OSError), _below(scratch, RECORDS) as records:
            for store in _names(records, STORE_NAME):
                with suppress(OSError), _below(records, store) as workers:
                    _tidy_store(workers, days * DAY, report)


def _tidy_work(work: int, report: CleanReport) -> None:
    for name in _names(work, FOLDER_NAME):
        with suppress(OSError), held_if_abandoned(Path(name), within=work) as abandoned:
            if abandoned:
                with _below(work, name) as left:
                    size = tree_bytes(left)
                if report.dry_run or remove_tree(name, work):
                    report.add("work of dead workers", name, size=size)


def _tidy_store(workers: int, keep_seconds: float, report: CleanReport) -> None:
    """Remove old copies of any worker, and the folder of a dead one once it is empty."""
    for name in _names(workers, FOLDER_NAME):
        with suppress(OSError), _below(workers, name) as folder:
            for path in _names(folder, _COPY_NAME):
                with suppress(OSError):
                    _tidy_copy(folder, path, keep_seconds, report)
        with suppress(OSError), held_if_abandoned(Path(name), within=workers) as abandoned:
            if abandoned and not report.dry_run:
                os.rmdir(name, dir_fd=workers)


def _tidy_copy(folder: int, name: str, keep_seconds: float, report: CleanReport) -> None:
    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
    keeps = PARTIAL_SECONDS if PARTIAL_NAME.fullmatch(name) else keep_seconds
    if stat.S_ISDIR(facts.st_mode) or time.time() - facts.st_mtime <= keeps:
        return
    if not report.dry_run:
        os.unlink(name, dir_fd=folder)
    report.add("old copies of records", name, size=facts.st_size)


@contextmanager
def _below(folder: int, name: str) -> Iterator[int]:
    """A descriptor of a folder in `folder`. Raises OSError, also for a link."""
    below = open_folder(folder, name)
    try:
        yield below
    finally:
        os.close(below)


def _names(folder: int, pattern: re.Pattern[str]) -> list[str]:
    entries = os.listdir(folder)
    return sorted(name for name in entries if pattern.fullmatch(name))
