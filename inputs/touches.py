"""When an input folder was last used, so that it is kept for so long and no longer.

Two zero-byte objects tell: `ages/used/{folder}` by its modification time, which is the last use;
and one row, `ages/inputs/{day}/{folder}`, by which the folder is found when that day is long past.
Whoever finds it by an old row, and used since, moves the row on to a later day.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from storage import ObjectNotFound, Store
from utils import Clock, day_of, utc_now

#: Below this lies a folder of rows a day.
AGES = "ages/inputs/"
#: A worker writes down the use of a folder at most this often.
TOUCH_SECONDS = 3600.0
#: Folders that a worker remembers.
MAX_REMEMBERED = 10_000


def age_key(day: str, folder: str) -> str:
    return f"{AGES}{day}/{folder}"


def used_key(folder: str) -> str:
    return f"ages/used/{folder}"


class Touches:
    """Writes down that folders are used."""

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self._store = store
        self._clock = clock
        #: When each was touched, by the monotonic clock; the latest last.
        self._touched: OrderedDict[str, float] = OrderedDict()

    async def touch(self, folder: str) -> None:
        """Say that the folder is used now, unless this worker has said so within the hour."""
        if (at := self._touched.get(folder)) and time.monotonic() - at < TOUCH_SECONDS:
            return
        try:
            await self._store.stat(used_key(folder))
        except ObjectNotFound:  # the row first: a use that nothing leads to would last for ever
            await self._store.put(age_key(day_of(self._clock()), folder), b"")
        await self._store.put(used_key(folder), b"")
        self._touched[folder] = time.monotonic()
        self._touched.move_to_end(folder)
        while len(self._touched) > MAX_REMEMBERED:
            self._touched.popitem(last=False)
