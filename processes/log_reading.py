"""Reading a log, wherever its attempt runs or ran: a page after a line, or the newest lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from attempts.log_writing import (
    TAIL_NAME,
    AttemptLog,
    LogSeen,
    Segment,
    Tail,
    decoded,
    decoded_tail,
    logs_prefix,
    segment_of,
)
from child.job_log import Lines
from processes.runs import Runs
from records.reading import check_attempt
from records.record import Record
from storage import ObjectNotFound, Store, Stored
from stores.prefixes import list_all

#: How often the log of an attempt elsewhere is looked at while somebody waits for it.
LOOK_SECONDS = 2.0
#: How often it is looked whether an attempt here has ended; of a line one hears at once.
END_SECONDS = 0.5


class WantedLines(NamedTuple):
    """Which lines: those after `after`, oldest first, or the newest (`after` is None)."""

    after: int | None
    #: How many, and what they may take in a reply's JSON.
    limit: int
    max_bytes: int


class LogPage(NamedTuple):
    """Lines in a row. Perhaps none: `lines.first` is then the number of the one to come."""

    lines: Lines
    #: How many just before them were left out, of those that were asked for.
    left_out: int
    #: Whether there is nothing kept after them, as of now.
    at_end: bool
    unfinished: str | None


class _Piece(NamedTuple):
    """Lines of a segment, or at hand, from `first` on."""

    first: int
    last: int
    source: Segment | Lines


# ---- pure


def pieces_of(segments: Sequence[Segment], newest: Sequence[Lines]) -> list[_Piece]:
    """All lines that are kept, each once, in order; at hand, where they are."""
    at_hand = [_Piece(rows.first, rows.last, rows) for rows in newest if rows.texts]
    start = at_hand[0].first if at_hand else None
    pieces: list[_Piece] = []
    for segment in sorted(segments):
        first = pieces[-1].last + 1 if pieces else 1
        last = segment.last if start is None else min(segment.last, start - 1)
        if last >= max(segment.first, first):
            pieces.append(_Piece(max(segment.first, first), last, segment))
    return pieces + at_hand


def in_a_row(pieces: Sequence[_Piece], after: int | None) -> tuple[int, list[_Piece]]:
    """The pieces to read without a gap among them, and how many lines are missing before.

    They begin after line `after`; None: they end with the last one.
    """
    if after is None:
        start = len(pieces)
        while start > 0 and (start == len(pieces) or _adjoin(pieces[start - 1 : start + 1])):
            start -= 1
        if start == len(pieces):
            return 0, []
        return pieces[start].first - 1 - (pieces[start - 1].last if start else 0), [*pieces[start:]]
    left = [
        piece._replace(first=max(piece.first, after + 1)) for piece in pieces if piece.last > after
    ]
    end = 1
    while end < len(left) and _adjoin(left[end - 1 : end + 1]):
        end += 1
    return (left[0].first - 1 - after, left[:end]) if left else (0, [])


def _adjoin(two: Sequence[_Piece]) -> bool:
    return two[0].last + 1 == two[1].first


# ---- from wherever it is


async def page_of_log(seen: LogSeen, wanted: WantedLines) -> LogPage:
    """What is `wanted` of it, as much as fits."""
    pieces = pieces_of(seen.segments, seen.newest)
    while True:
        left_out, chosen = in_a_row(pieces, wanted.after)
        lines, gone = await _read(seen, chosen, wanted)
        if gone is None or lines.texts:
            break
        pieces = [piece for piece in pieces if piece.source is not gone]  # left out just now
    if not lines.texts:
        return LogPage(lines, 0, at_end=True, unfinished=seen.unfinished)
    at_end = lines.last == pieces[-1].last
    return LogPage(
        lines,
        left_out if lines.first == chosen[0].first else 0,
        at_end=at_end,
        unfinished=seen.unfinished if at_end else None,
    )


async def _read(
    seen: LogSeen, chosen: Sequence[_Piece], wanted: WantedLines
) -> tuple[Lines, Segment | Lines | None]:
    """As many lines of `chosen` as are wanted and fit, and what was not there any more."""
    if not chosen:
        return Lines((wanted.after or 0) + 1, []), None
    newest_first = wanted.after is None
    texts: list[str] = []
    room, gone = wanted.max_bytes, None
    for piece in reversed(chosen) if newest_first else chosen:
        try:
            found = await _texts_of(seen, piece)
        except ObjectNotFound:
            gone = piece.source
            break
        for text in reversed(found) if newest_first else found:
            room -= len(json.dumps(text)) + 2
            if len(texts) == wanted.limit or (texts and room < 0):
                break
            texts.append(text)
        else:
            continue
        break
    if newest_first:
        return Lines(chosen[-1].last + 1 - len(texts), texts[::-1]), gone
    return Lines(chosen[0].first, texts), gone


async def _texts_of(seen: LogSeen, piece: _Piece) -> list[str]:
    source = piece.source
    lines = await seen.read(source) if isinstance(source, Segment) else source
    return lines.texts[piece.first - lines.first : piece.last - lines.first + 1]


class LogLook:
    """The log of one attempt, for somebody who looks at it again and again."""

    def __init__(self, store: Store, runs: Runs, record: Record, attempt: int) -> None:
        """Raises UnknownAttempt."""
        check_attempt(record, attempt)
        self.attempt = attempt
        self._store = store
        self._runs = runs
        self._process_id = record.process_id
        self._prefix = logs_prefix(record.process_id, attempt)
        self._tail: Stored | None = None

    async def page(self, wanted: WantedLines) -> LogPage:
        """What is wanted of it, as of now.

        The worker that runs the attempt asks nobody. Any other asks for `tail.txt`, and for more
        only if that does not go back far enough.

        Raises:
            StorageUnavailable, StorageMisconfigured: the store cannot be asked.
        """
        own = self._own()
        return await page_of_log(await own.seen() if own else await self._stored(wanted), wanted)

    async def news(self, page: LogPage, seconds: float) -> None:
        """Wait until there may be more than `page`, no longer than `seconds`."""
        if own := self._own():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, END_SECONDS)):
                    await own.longer_than(page.lines.last)
        else:
            await asyncio.sleep(min(seconds, LOOK_SECONDS))

    def _own(self) -> AttemptLog | None:
        run = self._runs.held(self._process_id)
        return run.log if run and run.lease.record.attempt == self.attempt else None

    async def _stored(self, wanted: WantedLines) -> LogSeen:
        try:
            self._tail = await self._store.get(self._prefix + TAIL_NAME, cached=self._tail)
            tail = decoded_tail(self._tail.data)
        except ObjectNotFound:
            tail = Tail(Lines(1, []), None)
        lines = tail.lines
        after = lines.last - wanted.limit if wanted.after is None else wanted.after
        segments: list[Segment] = []
        if max(after, 0) + 1 < lines.first:
            rows = [row async for row in list_all(self._store, self._prefix)]
            named = (segment_of(row.key.removeprefix(self._prefix), row.size) for row in rows)
            segments = [segment for segment in named if segment]
        return LogSeen(segments, [lines], tail.unfinished, self._read)

    async def _read(self, segment: Segment) -> Lines:
        return decoded(segment, (await self._store.get(self._prefix + segment.name)).data)
