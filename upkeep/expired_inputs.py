"""Input folders that were neither changed nor used for long: which they are, and how they go."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from inputs.folder_files import PREFIX, manifest_key
from inputs.touches import AGES, TOUCH_SECONDS, Touches, age_key, used_key
from storage import Listed, ObjectNotFound
from stores.prefixes import list_all
from upkeep.clean_run import DAY, CleanRun, in_batches, rows_of_days, side_by_side
from upkeep.sweep import in_turn
from utils import day_of

#: Folders that one run looks at, at least, to see whether their use is written down at all.
SWEPT_FOLDERS = 20


async def remove_expired_folders(run: CleanRun) -> None:
    """Those that old rows lead to, unless they were used since: then their row is moved on."""
    if run.settings.input_days is None:
        return
    rows = rows_of_days(run, AGES, before=run.day(run.settings.input_days))
    async for batch in in_batches(rows):
        await run.still_mine()
        await side_by_side(_remove_or_move_on(run, key) for key in batch)


async def _remove_or_move_on(run: CleanRun, row: str) -> None:
    folder = row.rpartition("/")[2]
    objects = [each async for each in list_all(run.store, f"{PREFIX}{folder}/")]
    last = await _last_use(run, folder, objects)
    assert run.settings.input_days is not None
    if last > run.now - run.settings.input_days * DAY:
        await run.put(age_key(day_of(datetime.fromtimestamp(last, UTC)), folder))
        await run.delete([row])
        return
    # The manifest first: half a folder must not pass for a whole one. What came since stays.
    await run.delete([manifest_key(folder)])
    await run.delete([each.key for each in objects if each.key != manifest_key(folder)])
    await run.delete([used_key(folder)])
    await run.delete([row])
    if objects:
        run.report.add(
            "input folders", folder, objects=len(objects), size=sum(each.size for each in objects)
        )


async def _last_use(run: CleanRun, folder: str, objects: list[Listed]) -> float:
    """By the store's clock. Also a file that was PUT to an old link is a use."""
    times = [each.modified for each in objects]
    with suppress(ObjectNotFound):
        times.append((await run.store.stat(used_key(folder))).modified + TOUCH_SECONDS)
    return max(times, default=0.0)


async def sweep_folders(run: CleanRun, cursors: dict[str, str]) -> None:
    """Begin to count for folders of which no use was ever written down: an operator's, or those
    from before."""
    if run.settings.input_days is None:
        return
    touches = Touches(run.store, lambda: run.moment(0))
    look_at = partial(_begin_to_count, run, touches)
    await in_turn(run, cursors, "inputs", look_at, least=SWEPT_FOLDERS)


async def _begin_to_count(run: CleanRun, touches: Touches, folder: str) -> None:
    try:
        await run.store.stat(used_key(folder))
    except ObjectNotFound:
        await run.still_mine()
        if not run.dry:
            await touches.touch(folder)
