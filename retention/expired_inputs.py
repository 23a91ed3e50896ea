"""Input folders that were neither changed nor used for long: which they are, and how they go."""

from __future__ import annotations

from functools import partial

from inputs.folder_files import PREFIX, manifest_key
from inputs.touches import ROWS, TOUCH_SECONDS
from retention.clean_run import DAY, CleanRun
from retention.sweep import Names, in_turn
from storage import Listed, ObjectNotFound
from stores.prefixes import list_with_foreign
from utils import Stopwatch

#: Rows that one run looks at, at least: a LIST for 1000.
SWEPT_ROWS = 20_000


async def remove_expired_folders(run: CleanRun) -> None:
    """Those whose rows are old. Rows are looked at in turn."""
    if run.settings.input_days is not None:
        before = run.now - run.settings.input_days * DAY - TOUCH_SECONDS
        rows = partial(_rows, run)
        await in_turn(run, "inputs", rows, partial(_look_at, run, before), least=SWEPT_ROWS)


async def _rows(run: CleanRun, after: str | None, limit: int) -> Names[Listed]:
    page = await run.store.list(ROWS, start_after=after and f"{ROWS}{after}", limit=limit)
    rows = {row.key.removeprefix(ROWS): row for row in page.objects}
    return Names(rows, page.next is not None)


async def _look_at(run: CleanRun, before: float, row: Listed) -> None:
    if row.modified > before:
        return
    folder = row.key.removeprefix(ROWS)
    below = f"{PREFIX}{folder}/"
    objects = [each async for each in list_with_foreign(run.store, below)]
    # Also a file that was PUT to an old link is a use.
    if max((each.modified for each in objects), default=0.0) > before + TOUCH_SECONDS:
        return
    seen = Stopwatch()
    if not await _is_still(run, row):
        return
    # The manifest first: half a folder must not pass for a whole one. What came since stays.
    if not await run.delete_if_just_seen([manifest_key(folder)], seen):
        return
    await run.delete([each.key for each in objects if each.key != manifest_key(folder)])
    await run.delete([row.key])
    if objects:
        size = sum(each.size for each in objects)
        run.report.add("input folders", folder, objects=len(objects), size=size)


async def _is_still(run: CleanRun, row: Listed) -> bool:
    """Whether the folder was not used since its row was listed, perhaps minutes ago."""
    try:
        # Stores tell it in whole seconds here, and more exactly in a list.
        return (await run.store.stat(row.key)).modified <= row.modified
    except ObjectNotFound:
        return False
