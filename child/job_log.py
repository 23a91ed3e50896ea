"""What a job prints: taken by the chunk, kept in bounded memory, told by numbered lines.

A job may print a gigabyte in seconds. So a chunk is only cut at its last line's end and counted
while it comes; what it says is looked at when somebody wants it, and by then most of a flood is
gone: of what came since the last `settle` the beginning and the end are kept. What is left out
still counts, so a gap in the numbers of lines says how many are missing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

#: A longer line is cut there, in bytes.
LINE_LIMIT: Final = 16 * 1024
#: Of a longer line so much more was searched for secrets, or one could be found cut in half.
MARGIN: Final = 16 * 1024
#: Bytes kept from the beginning, and from the end, of what was printed since the last `settle`.
WINDOW: Final = 128 * 1024
_KEPT: Final = LINE_LIMIT + MARGIN
#: What it costs to hold a block, beside its text.
_BLOCK_COST: Final = 128
_TAIL_LINE_LIMIT: Final = 1000

Redact = Callable[[str], str]


class Lines(NamedTuple):
    """Lines in a row, numbered from `first`; the first line of an attempt is 1."""

    first: int
    texts: list[str]

    @property
    def last(self) -> int:
        """`first - 1` if there are none."""
        return self.first + len(self.texts) - 1


class Block(NamedTuple):
    """Whole lines in a row as they came, each ended by the next or by the block's end."""

    first: int
    lines: int
    text: bytes
    #: Bytes of its only line that were not kept.
    missing: int

    @property
    def last(self) -> int:
        return self.first + self.lines - 1

    @property
    def cost(self) -> int:
        return len(self.text) + _BLOCK_COST


class _Shown(NamedTuple):
    """What a terminal shows of a line in the making, as far as it is kept."""

    text: bytes = b""
    missing: int = 0

    def plus(self, more: bytes) -> _Shown:
        text = self.text + more
        return _Shown(text[:_KEPT], self.missing + max(0, len(text) - _KEPT))


class JobLog:
    """Takes bytes as they come and keeps them by lines, as a terminal would show them.

    A carriage return starts the line over, so that of a progress bar only its newest state is
    kept. `redact` takes the secrets out of a line when it is told, not when it comes.
    """

    def __init__(self, redact: Redact = str) -> None:
        self._redact = redact
        #: Lines that have ended, whether they are kept or not.
        self.count = 0
        self._settled = 0
        self._head: list[Block] = []
        self._head_cost = 0
        #: The newest, settled or not.
        self._newest: deque[Block] = deque()
        self._newest_cost = 0
        #: The line in the making: what stands there, and what stood there before the last return.
        self._now = self._before = _Shown()
        self._grown = asyncio.Event()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, in any portions."""
        ended, newline, rest = chunk.rpartition(b"\n")
        if newline:
            end_of_line, more, others = ended.partition(b"\n")
            self._go_on(end_of_line)
            self._end_line()
            if more:
                self._keep(others, others.count(b"\n") + 1)
        self._go_on(rest)

    def close(self) -> None:
        """The last line has ended, too."""
        if self._now.text or self._before.text:
            self._end_line()

    async def longer_than(self, count: int) -> None:
        """Return once more than `count` lines have ended."""
        while self.count <= count:
            self._grown.clear()
            await self._grown.wait()

    # ---- telling it

    def pending(self) -> list[Block]:
        """What is kept of all that came since the last `settle`."""
        last = self._head[-1].last if self._head else self._settled
        return [*self._head, *(block for block in self._newest if block.first > last)]

    def settle(self) -> list[Block]:
        """`pending`, which is then somebody else's to keep."""
        blocks = self.pending()
        self._settled = self.count
        self._head, self._head_cost = [], 0
        return blocks

    def told(self, blocks: Iterable[Block]) -> list[Lines]:
        """As anybody may read them, in as few rows as there are gaps. For a thread, if many."""
        rows: list[Lines] = []
        for block in blocks:
            if not rows or rows[-1].last + 1 != block.first:
                rows.append(Lines(block.first, []))
            for line in block.text.split(b"\n"):
                rows[-1].texts.append(told_line(line, block.missing, self._redact))
        return rows

    def unfinished(self) -> str | None:
        """The line in the making, as it stood before its last carriage return: a progress bar.

        What came after that may be half a word, and half a secret is not known for one.
        """
        shown = self._before
        return told_line(shown.text, shown.missing, self._redact) if shown.text else None

    def tail(self, lines: int) -> list[str]:
        """The last lines, each cut at 1000 characters, `unfinished` included."""
        last = self.unfinished()
        wanted = lines if last is None else lines - 1
        told = [
            told_line(line, missing, self._redact)[:_TAIL_LINE_LIMIT]
            for line, missing in islice(_from_the_end(self._newest), max(wanted, 0))
        ]
        return [*reversed(told), *([] if last is None else [last[:_TAIL_LINE_LIMIT]])]

    # ---- keeping it

    def _go_on(self, more: bytes) -> None:
        before, returned, now = more.rpartition(b"\r")
        if returned:
            _, again, last = before.rstrip(b"\r").rpartition(b"\r")
            shown = (_Shown() if again else self._now).plus(last)
            if shown.text:
                self._before = shown
            self._now = _Shown()
        self._now = self._now.plus(now)

    def _end_line(self) -> None:
        shown = self._now if self._now.text else self._before
        self._now = self._before = _Shown()
        self._keep(shown.text, 1, shown.missing)

    def _keep(self, text: bytes, lines: int, missing: int = 0) -> None:
        block = Block(self.count + 1, lines, text, missing)
        self.count += lines
        if self._head_cost < WINDOW:
            self._head.append(block)
            self._head_cost += block.cost
        self._newest.append(block)
        self._newest_cost += block.cost
        while self._newest_cost - self._newest[0].cost >= WINDOW:
            self._newest_cost -= self._newest.popleft().cost
        self._grown.set()


def told_line(line: bytes, missing: int, redact: Redact) -> str:
    """One line as anybody may read it: without secrets, and only then cut at its limit.

    `missing` of its bytes were not kept. What is cut is marked: `... [84000 bytes cut]`.
    """
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    missing += max(0, len(shown) - _KEPT)
    text = redact(shown[:_KEPT].decode(errors="replace"))
    size = len(text.encode()) + missing
    if size <= LINE_LIMIT and not missing:
        return text
    if missing:  # it may end within a secret, which was not found for being half
        text = text[:-MARGIN]
    kept = text.encode()[:LINE_LIMIT].decode(errors="ignore")
    return f"{kept}... [{size - len(kept.encode())} bytes cut]"


def _from_the_end(blocks: deque[Block]) -> Iterator[tuple[bytes, int]]:
    for block in reversed(blocks):
        for line in reversed(block.text.split(b"\n")):
            yield line, block.missing
