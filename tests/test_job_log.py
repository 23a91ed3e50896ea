"""What is kept of what a job prints: the newest, by lines, in bounded space."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import job_log


def test_the_log_keeps_the_newest_lines(tmp_path: Path) -> None:
    log = job_log.JobLog(tmp_path)
    for number in range(100_000):
        log.feed(f"{number} ".encode() + b"." * 100 + b"\n")
    assert log.tail(2)[-1].startswith("99999 ")
    log.close()
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].startswith("99999 ")


@pytest.mark.parametrize("portion", [1, 7, 1000])
def test_of_a_progress_bar_the_log_keeps_the_newest_state(tmp_path: Path, portion: int) -> None:
    log = job_log.JobLog(tmp_path)
    text = b"start\r\n 10%\r 20%\r 30%\ndone\n 40%\r 50%\r"
    for place in range(0, len(text), portion):
        log.feed(text[place : place + portion])
    assert log.tail(10) == ["start", " 30%", "done", " 50%"]
    log.close()
    assert (tmp_path / "log.txt").read_text() == "start\n 30%\ndone\n 50%\n"


@pytest.mark.parametrize("portion", [1000, 1_000_000])
def test_a_long_line_is_cut(tmp_path: Path, portion: int) -> None:
    log = job_log.JobLog(tmp_path)
    text = b"x" * 100_000 + b"\nshort\n"
    for place in range(0, len(text), portion):
        log.feed(text[place : place + portion])
    log.close()
    lengths = [len(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lengths == [job_log.LINE_LIMIT, 5]
    assert [len(line) for line in log.tail(2)] == [1000, 5]


def test_a_full_disk_costs_the_log_file_not_the_job(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = job_log.JobLog(tmp_path)
    log.feed(b"one\n")
    log.feed(b"two\n")
    assert log.tail(5) == ["one", "(the log file ends here: No space left on device)", "two"]
