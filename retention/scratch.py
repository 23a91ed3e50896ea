"""What dead workers have left on this machine's scratch disk. Blocking; best in a thread.

The disk may be anybody's, a home folder even: what goes is told by the names that workers give.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

from records.cache import COPY, PARTIAL_NAME
from retention.clean_run import DAY, CleanReport
from worker.beneath import opened, remove_tree, tree_bytes
from worker.settings import Settings
from worker.workplace import FOLDER_NAME, RECORDS, STORE_NAME, WORK, held_if_abandoned

#: Copies of records are kept so long, unless processes expire earlier.
COPY_DAYS = 30.0
#: Whoever writes a file beside the one that it is to replace does not pause for so long.
PARTIAL_SECONDS = DAY
#: An unsent write has another name: it stays until it is sent.
_COPY_NAME = re.compile(rf".*{re.escape(COPY)}|{PARTIAL_NAME.pattern}")


def tidy_scratch(settings: Settings, report: CleanReport) -> None:
    """Remove it, and say so in `report`. A disk that refuses is no error."""
    for folder in _entries(settings.scratch_dir / WORK, FOLDER_NAME):
        with suppress(OSError), held_if_abandoned(folder) as abandoned:
            if abandoned:
                with opened(folder) as left:
                    size = tree_bytes(left)
                if report.dry_run or _removed(folder):
                    report.add("work of dead workers", folder.name, size=size)
    days = min(settings.process_days or COPY_DAYS, COPY_DAYS)
    for store in _entries(settings.scratch_dir / RECORDS, STORE_NAME):
        for folder in _entries(store, FOLDER_NAME):
            _tidy_records(folder, days * DAY, report)


def _tidy_records(folder: Path, keep_seconds: float, report: CleanReport) -> None:
    """Remove old copies of any worker, and the folder of a dead one once nothing is in it."""
    for path in _entries(folder, _COPY_NAME):
        with suppress(OSError):
            if _is_old(path, keep_seconds):
                size = path.stat().st_size
                if not report.dry_run:
                    path.unlink()
                report.add("old copies of records", path.name, size=size)
    with suppress(OSError), held_if_abandoned(folder) as abandoned:
        if abandoned and not report.dry_run:
            folder.rmdir()


def _removed(folder: Path) -> bool:
    with opened(folder.parent) as above:
        return remove_tree(folder.name, above)


def _entries(folder: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if name.fullmatch(path.name))
    except OSError:
        return []


def _is_old(path: Path, keep_seconds: float) -> bool:
    partial = PARTIAL_NAME.fullmatch(path.name)
    return time.time() - path.stat().st_mtime > (PARTIAL_SECONDS if partial else keep_seconds)
