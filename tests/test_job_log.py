"""What is kept of what a job prints: numbered lines, in bounded memory, without secrets."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from child.job_log import LINE_LIMIT, MARGIN, WINDOW, JobLog, Lines
from worker.redaction import MASK, Redactor

SECRET = "correct-horse-battery-staple"


def fed(text: bytes, portion: int = 1_000_000, *, known: str = "") -> JobLog:
    """A log that was fed `text`, so many bytes at a time."""
    log = JobLog(Redactor([known]).text)
    for place in range(0, len(text), portion):
        log.feed(text[place : place + portion])
    return log


def told(log: JobLog) -> list[Lines]:
    return log.told(log.settle())


# ---- lines


@pytest.mark.parametrize("portion", [1, 7, 1000])
def test_lines_are_numbered_as_they_end_whatever_portions_they_come_in(portion: int) -> None:
    log = fed(b"one\n\ntwo\nthree\n\nunfinished", portion)
    assert told(log) == [Lines(1, ["one", "", "two", "three", ""])]
    log.feed(b" no more\n")
    assert told(log) == [Lines(6, ["unfinished no more"])]


def test_the_end_ends_the_last_line() -> None:
    log = fed(b"one\ntwo")
    log.close()
    assert told(log) == [Lines(1, ["one", "two"])]


@pytest.mark.parametrize("portion", [1, 7, 1000])
def test_of_a_progress_bar_the_log_keeps_the_newest_state(portion: int) -> None:
    log = fed(b"start\r\n 10%\r 20%\r 30%\ndone\n\r 40%\r 50%\r", portion)
    assert log.tail(10) == ["start", " 30%", "done", " 50%"]
    log.close()
    assert told(log) == [Lines(1, ["start", " 30%", "done", " 50%"])]


def test_a_bar_under_way_is_told_as_it_was_before_the_last_return() -> None:
    """What follows may be half a word, and half a secret cannot be recognised."""
    log = fed(f" 10%\r 20%\r{SECRET[:20]}".encode(), known=SECRET)
    assert log.unfinished() == " 20%"
    assert told(log) == []


async def test_whoever_waits_hears_of_the_next_line_at_once() -> None:
    log = fed(b"one\n")
    waiting = [asyncio.create_task(log.longer_than(1)) for _ in range(2)]
    await log.longer_than(0)
    log.feed(b"tw")
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    log.feed(b"o\n")
    await asyncio.gather(*waiting)


# ---- a flood


def test_of_a_flood_the_beginning_and_the_end_are_kept_and_the_rest_is_counted() -> None:
    log = JobLog()
    for number in range(1, 100_001):
        log.feed(b"%d " % number + b"." * 100 + b"\n")
    beginning, end = told(log)
    for lines in (beginning, end):
        assert [text.split()[0] for text in lines.texts] == [
            str(number) for number in range(lines.first, lines.last + 1)
        ]
        assert len("".join(lines.texts)) <= WINDOW
    assert (beginning.first, end.last) == (1, 100_000)
    assert end.first > beginning.last + 50_000


def test_what_is_printed_after_a_settle_has_room_again() -> None:
    log = fed(b"x\n" * 1_000_000, 65_536)
    told(log)
    log.feed(b"one\ntwo\n")
    assert told(log) == [Lines(1_000_001, ["one", "two"])]
    assert told(log) == []


@pytest.mark.parametrize("chunk", [b"\n" * 65_536, b"x" * 65_536, b"a bar\r" * 10_000, b"y\n"])
def test_a_flood_takes_bounded_memory(chunk: bytes) -> None:
    log = JobLog()
    tracemalloc.start()
    try:
        for _ in range(5_000):
            log.feed(chunk)
        assert tracemalloc.get_traced_memory()[1] < 8 * WINDOW
    finally:
        tracemalloc.stop()


# ---- long lines, and secrets


@pytest.mark.parametrize("portion", [1000, 1_000_000])
@pytest.mark.parametrize("length", [LINE_LIMIT + 1, LINE_LIMIT + MARGIN, 100_000])
def test_a_long_line_is_cut_and_says_how_much_is_missing(portion: int, length: int) -> None:
    log = fed(b"x" * length + b"\nshort\n", portion)
    [lines] = told(log)
    assert lines.texts == ["x" * LINE_LIMIT + f"... [{length - LINE_LIMIT} bytes cut]", "short"]
    assert [len(text) for text in log.tail(2)] == [1000, 5]


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    assert told(fed(b"x" * LINE_LIMIT + b"\n")) == [Lines(1, ["x" * LINE_LIMIT])]


@pytest.mark.parametrize("portion", [1, 5, 1000])
def test_a_secret_is_taken_out_however_it_comes(portion: int) -> None:
    log = fed(f"key is {SECRET} indeed\n".encode(), portion, known=SECRET)
    assert log.tail(1) == [f"key is {MASK} indeed"]
    assert told(log) == [Lines(1, [f"key is {MASK} indeed"])]


@pytest.mark.parametrize("limit", [LINE_LIMIT, LINE_LIMIT + MARGIN])
@pytest.mark.parametrize("portion", [4096, 1_000_000])
def test_no_half_of_a_secret_survives_where_a_line_is_cut(limit: int, portion: int) -> None:
    """Neither where a line is cut for the reader, nor where the rest of it was never kept."""
    for offset in range(len(SECRET) + 1):
        text = "x" * (limit - offset) + SECRET + "y" * 50_000
        [lines] = told(fed(f"{text}\n".encode(), portion, known=SECRET))
        assert SECRET[:4] not in lines.texts[0]


@pytest.mark.parametrize("length", [LINE_LIMIT + MARGIN + 40, 150_000])
def test_nor_where_so_much_was_redacted_that_the_cut_comes_into_sight(length: int) -> None:
    for shift in range(len(SECRET) + 1):
        text = ("." * shift + f"{SECRET} " * 6000)[:length]
        [lines] = told(fed(f"{text}\n".encode(), known=SECRET))
        assert SECRET[:4] not in lines.texts[0]
