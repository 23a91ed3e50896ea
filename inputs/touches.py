"""When an input folder was last used: the modification time of its zero-byte row."""

from __future__ import annotations

import time
from collections import OrderedDict

from storage import Store

#: Below this lie the rows.
ROWS = "ages/inputs/"
#: A worker writes down the use of a folder at most this often.
TOUCH_SECONDS = 3600.0
#: Folders that a worker remembers.
MAX_REMEMBERED = 10_000


def used_key(folder: str) -> str:
    return f"{ROWS}{folder}"


class Touches:
    """Writes down that folders are used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: When each was touched, by the monotonic clock; the latest last.
        self._touched: OrderedDict[str, float] = OrderedDict()

    async def touch(self, folder: str) -> None:
        """Say that the folder is used now, unless this worker has said so within the hour."""
        if (at := self._touched.get(folder)) and time.monotonic() - at < TOUCH_SECONDS:
            return
        await self._store.put(used_key(folder), b"")
        self._touched[folder] = time.monotonic()
        self._touched.move_to_end(folder)
        while len(self._touched) > MAX_REMEMBERED:
            self._touched.popitem(last=False)
