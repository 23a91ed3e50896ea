"""The action `logs`: what a job prints, by the page, wherever it runs or ran."""

from __future__ import annotations

import time

from api.actions import MAX_LOG_LINES, LogsAction
from process_manager import LogPage, ProcessManager, WantedLines
from records.replies import MAX_PAGE_BYTES, Reply
from records.view import Snapshot, view
from worker.settings import Settings


class LogActions:
    """Answers it."""

    def __init__(self, manager: ProcessManager, settings: Settings) -> None:
        self._manager = manager
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
            snapshot = await self._manager.lookup.get(action.process_id)
            record = snapshot.record
            look = look or self._manager.log_of(record, attempt or record.attempt)
            limit = action.tail if after is None else MAX_LOG_LINES
            page = await look.page(WantedLines(after, limit, MAX_PAGE_BYTES))
            goes_on = action.attempt is None and look.attempt < record.attempt
            if goes_on and not page.lines.texts:
                look, after = self._manager.log_of(record, look.attempt + 1), 0
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
