"""Links by which anyone may follow and cancel a process with no worker involved."""

from __future__ import annotations

import time
from collections import OrderedDict

from attempts.log_writing import log_tail_key
from records.keys import cancel_key, record_key
from records.record import Record
from storage import PresignUnsupported, StorageFailure, Store

#: A day: longer than most processes, and a view with fresh links is one poll away.
VALID_SECONDS = 86_400
#: Views are asked for many times a second; the same links serve for an hour.
REUSED_SECONDS = 3_600
MAX_REMEMBERED = 1000

Links = dict[str, str]


class LinkMaker:
    """Presigned links to a process: `status` (GET the record), `cancel` (PUT nothing), `log`.

    The record never holds a secret, and a note needs no content: both may be in anyone's hands.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made: OrderedDict[tuple[str, int], tuple[float, Links]] = OrderedDict()

    async def links(self, record: Record) -> Links:
        """Those that the store can make, perhaps none."""
        key = (record.process_id, record.attempt)
        made = self._made.get(key)
        if made is None or time.monotonic() - made[0] > REUSED_SECONDS:
            try:
                made = self._made[key] = (time.monotonic(), await self._make(record))
            except (
                StorageFailure
            ):  # nobody knows yet what it can do; a view is an answer without links
                return {}
            while len(self._made) > MAX_REMEMBERED:
                self._made.popitem(last=False)
        return made[1]

    async def _make(self, record: Record) -> Links:
        links: Links = {}
        process_id = record.process_id
        log_key = log_tail_key(process_id, record.attempt)
        store = self._store
        try:
            links["status"] = await store.presign_get(
                record_key(process_id), expires_in=VALID_SECONDS
            )
            links["log"] = await store.presign_get(log_key, expires_in=VALID_SECONDS)
            # Signed for no bytes at all: owners read the note at every poll.
            links["cancel"] = await store.presign_put(
                cancel_key(process_id), expires_in=VALID_SECONDS, size=0
            )
        except PresignUnsupported:
            pass  # a folder can be read by a link but not written; some buckets do neither
        return links
