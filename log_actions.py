"""The action `logs`: what a job prints, by the page, wherever it runs or ran."""

from __future__ import annotations

import time

from actions import MAX_LOG_LINES, LogsAction
from processes.log_reading import LogLook, LogPage, Wanted
from processes.lookup import ProcessLookup
from processes.record import Snapshot, view
from replies import MAX_PAGE_BYTES, Reply
from settings import Settings
from storage import Store


class LogActions:
    """Answers it."""

    def __init__(self, store: Store, lookup: ProcessLookup, settings: Settings) -> None:
        self._store = store
        self._lookup = lookup
        self._settings = settings

    async def answer(self, action: LogsAction) -> Reply:
        """A page of lines; if there are none, as soon as there is one or nothing more comes.

        Raises:
            UnknownProcess: there is no such process.
            UnknownAttempt: it has had no such attempt.
        """
        deadline = time.monotonic() + action.wait_seconds
        (attempt, after), look = action.place, None
        while True:
            # First the record: of an attempt that has ended by then, the log is whole.
            snapshot = await self._lookup.get(action.process_id)
            record = snapshot.record
            look = look or LogLook(self._store, self._lookup, record, attempt or record.attempt)
            limit = action.tail if after is None else MAX_LOG_LINES
            page = await look.page(Wanted(after, limit, MAX_PAGE_BYTES))
            goes_on = action.attempt is None and look.attempt < record.attempt
            if goes_on and not page.lines.texts:
                look, after = LogLook(self._store, self._lookup, record, look.attempt + 1), 0
                continue
            over = record.released or look.attempt < record.attempt
            ended = over and page.at_end and not goes_on
            left = deadline - time.monotonic()
            if page.lines.texts or ended or left <= 0:
                return self._reply(snapshot, look.attempt, page, ended=ended)
            await look.news(page, left)

    def _reply(self, snapshot: Snapshot, attempt: int, page: LogPage, *, ended: bool) -> Reply:
        lines = page.lines
        return {
            "process_id": snapshot.record.process_id,
            "status": view(snapshot, lease_seconds=self._settings.lease_seconds)["status"],
            "attempt": attempt,
            "lines": [*lines.texts],
            "first_line": lines.first if lines.texts else None,
            "left_out": page.left_out,
            "unfinished": None if ended else page.unfinished,
            "next_cursor": None if ended else f"{attempt}:{lines.last}",
            "ended": ended,
        }
