"""Reading the object behind a process's `log` link: the newest lines of an attempt. Pure."""

from __future__ import annotations

import re

from podjobs.tracking import Logged

_HEAD = re.compile(r"# lines (\d+) to (\d+)")


def lines_after(text: str, attempt: int, seen: int) -> list[Logged]:
    """The lines of `text` whose numbers are above `seen`.

    The first line of `text` says which lines follow (`# lines 1201 to 1400`); line numbers that are
    missing between `seen` and the first one are counted in `left_out`.
    """
    head, _, body = text.partition("\n")
    match = _HEAD.match(head)
    if match is None:
        return []
    first, last = int(match[1]), int(match[2])
    lines = body.split("\n")[: max(0, last - first + 1)]
    new = [(first + index, line) for index, line in enumerate(lines) if first + index > seen]
    return [
        Logged(attempt, number, line, max(0, first - seen - 1) if index == 0 else 0)
        for index, (number, line) in enumerate(new)
    ]
