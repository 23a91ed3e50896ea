"""What a reply may weigh: the 8 MB rule, in one place."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import JsonValue

from utils import WorkerError

#: No reply is larger: RunPod takes 10 MB, and refuses the whole result above it.
MAX_REPLY_BYTES = 8_000_000
#: What the rows of one page may take of it. The rest is for the view of a process beside them: its
#: result, its log's tail and its labels together stay below 2 MB.
MAX_PAGE_BYTES = 6_000_000

Reply = dict[str, JsonValue]


class ReplyTooLarge(WorkerError):
    """The reply would exceed what RunPod carries."""

    code = "reply_too_large"


def bounded(reply: Reply) -> Reply:
    """`reply` itself, if RunPod can carry it.

    Raises:
        ReplyTooLarge: it cannot.
    """
    size = len(json.dumps(reply))
    if size > MAX_REPLY_BYTES:
        raise ReplyTooLarge(f"the reply would be {size} bytes; ask for less at a time")
    return reply


class Page:
    """Rows of one reply, as long as there is room for more."""

    def __init__(self) -> None:
        self.rows: list[JsonValue] = []
        self._left = MAX_PAGE_BYTES

    def add(self, row: Reply) -> bool:
        """Whether `row` still fits; if not, it is the next page's first."""
        self._left -= len(json.dumps(row)) + 2  # the comma and the space between two
        if self._left < 0:
            return False
        self.rows.append(row)
        return True


def page_of(rows: Iterable[Reply]) -> list[JsonValue]:
    """The rows from the first on that one reply can carry."""
    page = Page()
    all(page.add(row) for row in rows)
    return page.rows
