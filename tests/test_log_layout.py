"""How a log is cut into segments, what of it is kept, and how a page is put together: pure."""

from __future__ import annotations

import pytest

from attempts import log_writing as logs
from attempts.log_writing import (
    LogSeen,
    Segment,
    Tail,
    joined,
    seal,
    segment_of,
    shown_end,
    too_many,
)
from child.job_log import Lines
from processes.log_reading import LogPage, WantedLines, page_of_log
from storage import ObjectNotFound

ALL = WantedLines(0, 10_000, 1_000_000)


def lines(first: int, last: int, size: int = 0) -> Lines:
    """Lines that say their numbers."""
    return Lines(first, [str(number).ljust(size, ".") for number in range(first, last + 1)])


def seen(*parts: Segment | Lines, gone: int = 0) -> LogSeen:
    """A log of segments and of what is at hand; the segment that begins at `gone` is gone."""

    async def read(segment: Segment) -> Lines:
        if segment.first == gone:
            raise ObjectNotFound("removed just now")
        return lines(segment.first, segment.last)

    segments = [part for part in parts if isinstance(part, Segment)]
    return LogSeen(segments, [part for part in parts if isinstance(part, Lines)], None, read)


# ---- how it is written down


def test_a_segments_name_says_its_lines_and_names_sort_as_lines_do() -> None:
    segment = Segment(7, 1200, 5)
    assert segment.name == "000000000007-000000001200.txt"
    assert segment_of(segment.name, 5) == segment
    assert segment_of("tail.txt", 5) is None


@pytest.mark.parametrize("texts", [[], ["one"], ["", "# lines 1 to 9", "", "a\u2028b\x0bc"]])
@pytest.mark.parametrize("unfinished", [None, " 40%"])
def test_a_tail_is_read_as_it_was_written(texts: list[str], unfinished: str | None) -> None:
    tail = Tail(Lines(1201, texts), unfinished)
    assert logs.decoded_tail(logs.encoded_tail(tail)) == tail


def test_the_first_line_of_a_tail_tells_a_person_where_it_stands() -> None:
    tail = Tail(lines(1201, 1202), None)
    assert logs.encoded_tail(tail) == b"# lines 1201 to 1202\n1201\n1202\n"


# ---- what is sealed, shown and kept


def test_rows_without_a_gap_are_one() -> None:
    assert joined([lines(1, 2), lines(3, 4), lines(9, 9)]) == [lines(1, 4), lines(9, 9)]


def test_the_open_end_is_sealed_when_it_is_long_enough() -> None:
    short, long = lines(3, 4), lines(3, 2000, 64)
    assert seal(lines(1, 2), [short]) == ([], lines(1, 4))
    assert seal(lines(1, 2), [long]) == ([Lines(1, ["1", "2", *long.texts])], Lines(2001, []))


def test_a_gap_seals_what_comes_before_it() -> None:
    assert seal(lines(1, 2), [lines(3, 3), lines(9, 9)]) == ([lines(1, 3)], lines(9, 9))


def test_a_person_is_shown_the_newest_lines_and_what_is_in_no_segment_is_always_there() -> None:
    many = lines(1, 1000)
    assert shown_end(many, at_least=0) == lines(801, 1000)
    assert shown_end(many, at_least=500) == lines(501, 1000)
    long = lines(1, 100, 16_000)
    assert shown_end(long, at_least=1) == lines(97, 100, 16_000)
    assert shown_end(long, at_least=50) == lines(51, 100, 16_000)


def test_what_is_too_much_is_removed_from_the_middle() -> None:
    budget = 1000
    kept: list[Segment] = []
    removals = 0
    for number in range(500):
        kept.append(Segment(number, number, 60))
        removed = too_many(kept, budget)
        removals += bool(removed)
        kept = [segment for segment in kept if segment not in removed]
        assert sum(segment.size for segment in kept) <= budget
    assert [segment.first for segment in kept[:5]] == [0, 1, 2, 3, 4]
    newest = [segment.first for segment in kept[5:]]
    assert newest == list(range(500 - len(newest), 500))
    assert len(newest) >= 9
    assert removals < 500 / 2  # some at a time


# ---- pages


async def test_a_page_goes_over_segments_and_what_is_at_hand_each_line_once() -> None:
    log = seen(Segment(1, 3, 0), Segment(4, 6, 0), lines(5, 7), lines(8, 9))
    assert await page_of_log(log, ALL) == LogPage(lines(1, 9), 0, at_end=True, unfinished=None)
    page = await page_of_log(log, ALL._replace(after=4, limit=2))
    assert page == LogPage(lines(5, 6), 0, at_end=False, unfinished=None)
    assert (await page_of_log(log, ALL._replace(after=9))).lines == Lines(10, [])


async def test_a_page_ends_at_a_gap_and_the_next_one_says_how_many_were_left_out() -> None:
    log = seen(Segment(1, 3, 0), Segment(10, 12, 0), lines(11, 14), lines(20, 21))
    pages = []
    after = 0
    while not (pages and pages[-1].at_end):
        pages.append(await page_of_log(log, ALL._replace(after=after)))
        after = pages[-1].lines.last
    assert [page.lines for page in pages] == [lines(1, 3), lines(10, 14), lines(20, 21)]
    assert [page.left_out for page in pages] == [0, 6, 5]
    assert (await page_of_log(log, ALL._replace(after=7))).left_out == 2


async def test_the_newest_lines_are_those_after_the_last_gap() -> None:
    log = seen(Segment(1, 3, 0), Segment(10, 12, 0), lines(13, 14))
    newest = WantedLines(None, 3, 1_000_000)
    assert await page_of_log(log, newest) == LogPage(lines(12, 14), 0, True, None)
    assert await page_of_log(log, newest._replace(limit=99)) == LogPage(
        lines(10, 14), 6, True, None
    )


@pytest.mark.parametrize("after", [0, None])
async def test_a_page_has_no_more_bytes_than_asked_for_but_always_a_line(after: int | None) -> None:
    log = seen(Lines(1, ["ä" * 10, "ö" * 10, "ü" * 10]))
    as_json = 10 * len("\\u00e4") + 4  # quotes, comma, space
    two = await page_of_log(log, WantedLines(after, 99, 2 * as_json))
    assert len(two.lines.texts) == 2
    assert two.at_end == (after is None)
    assert len((await page_of_log(log, WantedLines(after, 99, 1))).lines.texts) == 1


async def test_a_segment_that_is_removed_while_it_is_read_counts_as_left_out() -> None:
    log = seen(Segment(1, 3, 0), Segment(4, 6, 0), lines(7, 8), gone=4)
    assert await page_of_log(log, ALL) == LogPage(lines(1, 3), 0, at_end=False, unfinished=None)
    after = ALL._replace(after=3)
    assert await page_of_log(log, after) == LogPage(lines(7, 8), 3, at_end=True, unfinished=None)
    assert (await page_of_log(log, WantedLines(None, 99, 1_000_000))).lines == lines(7, 8)


async def test_a_log_without_lines_is_an_empty_page() -> None:
    assert await page_of_log(seen(Lines(1, [])), ALL) == LogPage(Lines(1, []), 0, True, None)
    newest = WantedLines(None, 99, 1_000_000)
    assert await page_of_log(seen(), newest) == LogPage(Lines(1, []), 0, True, None)
