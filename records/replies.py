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


def encoded(reply: Reply) -> str:
    """`reply` as JSON, if RunPod can carry it.

    Raises:
        ReplyTooLarge: it cannot.
    """
    text = json.dumps(reply)
    if len(text) > MAX_REPLY_BYTES:
        raise ReplyTooLarge(f"the reply would be {len(text)} bytes; ask for less at a time")
    return text


class ReplyPage:
    """Rows of one reply, as long as there is room for more."""

    def __init__(self) -> None:
        self.rows: list[JsonValue] = []
        self._left = MAX_PAGE_BYTES

    def has_room(self, size: int) -> bool:
        """Whether a row of `size` bytes would be taken.

        The first one always is: a page that is empty though there is more would be asked for
        again for ever.
        """
        return not self.rows or size <= self._left

    def add(self, row: Reply) -> bool:
        """Whether `row` still fits; if not, it is the next page's first."""
        size = len(json.dumps(row)) + 2  # the comma and the space between two
        if not self.has_room(size):
            return False
        self._left -= size
        self.rows.append(row)
        return True


def page_of(rows: Iterable[Reply]) -> list[JsonValue]:
    """The rows from the first on that one reply can carry."""
    page = ReplyPage()
    for row in rows:
        if not page.add(row):
            break
    return page.rows
