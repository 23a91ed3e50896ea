"""A file from the web: whole and verified, or not at all, whatever the server does."""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import os
import traceback
from typing import TYPE_CHECKING

import pytest

from inputs import fetch as fetch_module
from inputs.errors import (
    InputMismatch,
    InputMissing,
    InputNotStored,
    InputRefused,
    InputTooLarge,
    InputUnreachable,
)
from inputs.public_web import Web
from tests.fetching import CONTENT, HALF, QUERY, STRONG, blob, get
from tests.web_server import Reply, WebServer, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from utils import WorkerError


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the file is to be; whatever happens, nothing else is left there."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    yield folder / "file"
    assert [left.name for left in folder.iterdir()] in ([], ["file"])


# ---- when all is well


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "one byte", "chunks"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_is_fetched_and_hashed(
    server: WebServer, path: Path, content: bytes, chunked: bool
) -> None:
    server.answer = lambda _: Reply(body=content, headers=STRONG, chunked=chunked)
    counts: list[int] = []
    assert await get(server, path, on_bytes=counts.append) == blob(content, '"v1"')
    assert path.read_bytes() == content
    assert sum(counts) == len(content)


async def test_it_asks_for_the_bytes_as_they_are(server: WebServer, path: Path) -> None:
    await get(server, path)
    (asked,) = server.asked
    assert asked.path == f"/folder/file?{QUERY}"
    assert asked.headers["accept-encoding"] == "identity"
    assert {"range", "if-range", "if-none-match", "cookie"}.isdisjoint(asked.headers)


async def test_what_was_there_is_replaced(server: WebServer, path: Path) -> None:
    path.write_bytes(b"older and longer")
    server.answer = lambda _: Reply(body=b"new")
    await get(server, path)
    assert path.read_bytes() == b"new"


async def test_what_has_not_changed_is_not_sent_again(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(304, headers=STRONG)
    assert await get(server, path, etag='"v1"') is None
    assert server.asked[0].headers["if-none-match"] == '"v1"'
    assert not path.exists()


async def test_what_has_changed_is_sent(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=b"new", headers={"ETag": 'W/"v2"'})
    assert await get(server, path, etag='"v1"') == blob(b"new", 'W/"v2"')


async def test_the_sha256_that_was_given_is_the_one_it_has(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=b"x")
    assert await get(server, path, expected_sha256=hashlib.sha256(b"x").hexdigest().upper())
    path.unlink()
    with pytest.raises(InputMismatch, match="SHA-256"):
        await get(server, path, expected_sha256="0" * 64)
    assert not path.exists()


# ---- answers that are no file


@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [
        (404, InputMissing, 1),
        (410, InputMissing, 1),
        (400, InputRefused, 1),
        (401, InputRefused, 1),
        (403, InputRefused, 1),
        (204, InputRefused, 1),
        (206, InputRefused, 1),
        (304, InputRefused, 1),
        (300, InputRefused, 1),
        (302, InputRefused, 1),
        (416, InputRefused, 1),
        (408, InputUnreachable, 3),
        (429, InputUnreachable, 3),
        (500, InputUnreachable, 3),
        (503, InputUnreachable, 3),
    ],
)
async def test_only_what_may_change_is_asked_again(
    server: WebServer, path: Path, status: int, error: type[WorkerError], asked: int
) -> None:
    server.answer = lambda _: Reply(status)
    with pytest.raises(error, match=str(status)) as caught:
        await get(server, path)
    assert len(server.asked) == asked
    assert caught.value.retryable == (asked > 1)
    assert not path.exists()


async def test_a_server_may_need_a_moment(server: WebServer, path: Path) -> None:
    server.answer = in_turn(Reply(503), Reply(429), Reply(body=b"x"))
    assert await get(server, path) == blob(b"x")


async def test_a_packed_body_is_refused_in_words(server: WebServer, path: Path) -> None:
    packed = {"Content-Encoding": "gzip"}
    server.answer = lambda _: Reply(body=gzip.compress(b"x"), headers=packed)
    with pytest.raises(InputRefused, match="Content-Encoding"):
        await get(server, path)
    assert not path.exists()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404),
        Reply(403),
        Reply(503),
        Reply(body=b"x" * 100),
        Reply(body=b"x", announced=50),
        Reply(headers={"Content-Encoding": "br"}),
        Reply(302, headers={"Location": "ftp://x?secret"}),
        Reply(body=b"x"),
        Reply(silent_after=0, announced=1),
    ],
)
async def test_no_error_tells_the_query(server: WebServer, path: Path, reply: Reply) -> None:
    server.answer = lambda _: reply
    with pytest.raises(Exception, match=r"127\.0\.0\.1|https") as caught:
        await get(server, path, expected_sha256="0" * 64, max_bytes=50, read_seconds=0.2, tries=1)
    told = "".join(traceback.format_exception(caught.value))
    assert "secret" not in told


# ---- sizes that lie


async def test_more_is_announced_than_may_be(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=b"x" * 11)
    with pytest.raises(InputTooLarge, match="11 bytes or more; at most 10"):
        await get(server, path, max_bytes=10)
    assert await get(server, path, max_bytes=11)


async def test_too_much_is_refused_before_any_of_it_is_sent(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(announced=10**12, silent_after=0)
    with pytest.raises(InputTooLarge, match="1000000000000 bytes"):
        await get(server, path, read_seconds=10)


async def test_a_stream_without_an_end_is_left_when_it_is_too_large(
    server: WebServer, path: Path
) -> None:
    server.answer = lambda _: Reply(body=b"x" * 65536, endless=True)
    with pytest.raises(InputTooLarge, match="at most 1000000"):
        await get(server, path, max_bytes=1_000_000, expected_sha256="0" * 64)
    assert len(server.asked) == 1
    assert not path.exists()


async def test_a_body_that_is_longer_than_it_says(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=b"x" * 50, announced=10, chunked=True)
    with pytest.raises(InputMismatch, match="more than the 10 bytes"):
        await get(server, path)
    assert not path.exists()


async def test_a_body_ends_where_it_says_whatever_comes_after(
    server: WebServer, path: Path
) -> None:
    server.answer = lambda _: Reply(body=b"x" * 50, announced=10)
    assert await get(server, path) == blob(b"x" * 10)


async def test_a_body_whose_end_nobody_could_tell_is_refused_in_words(
    server: WebServer, path: Path
) -> None:
    """It ends as the connection does, and so does half of it."""
    server.answer = lambda _: Reply(body=CONTENT, unannounced=True, breaks_after=HALF)
    with pytest.raises(InputRefused, match="add its sha256"):
        await get(server, path)
    assert not path.exists()


async def test_a_body_without_a_length_is_proven_by_its_sha256(
    server: WebServer, path: Path
) -> None:
    whole = blob(CONTENT)
    server.answer = lambda _: Reply(body=CONTENT, unannounced=True)
    assert await get(server, path, expected_sha256=whole.sha256) == whole
    server.answer = lambda _: Reply(body=CONTENT, unannounced=True, breaks_after=HALF)
    with pytest.raises(InputMismatch):
        await get(server, path, expected_sha256=whole.sha256)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_always_shorter_than_it_says(
    server: WebServer, path: Path, chunked: bool
) -> None:
    server.answer = lambda _: Reply(body=b"x" * 10, announced=50, chunked=chunked)
    with pytest.raises(InputUnreachable, match="broke off at byte 10 of 50"):
        await get(server, path)
    assert not path.exists()
    assert len(server.asked) == 4  # the first brought something, three no more than that


@pytest.mark.parametrize(
    ("path", "encoding"),
    [("/a.tar.gz", "gzip"), ("/a.TGZ", "x-gzip"), ("/a.tar.bz2", "x-bzip2"), ("/a.tar.xz", "xz")],
)
async def test_a_packed_file_that_is_said_to_be_encoded_arrives_as_it_is(
    server: WebServer, tmp_path: Path, path: str, encoding: str
) -> None:
    """Apache's AddEncoding describes the file, not what became of it on its way."""
    server.answer = lambda _: Reply(body=CONTENT, headers={"Content-Encoding": encoding})
    assert await get(server, tmp_path / "x", at=path) == blob(CONTENT)


@pytest.mark.parametrize(("path", "encoding"), [("/a.png", "gzip"), ("/a.gz", "br")])
async def test_a_file_that_is_encoded_on_its_way_is_refused_in_words(
    server: WebServer, tmp_path: Path, path: str, encoding: str
) -> None:
    server.answer = lambda _: Reply(body=CONTENT, headers={"Content-Encoding": encoding})
    with pytest.raises(InputRefused, match=encoding):
        await get(server, tmp_path / "x", at=path)


# ---- time


@pytest.mark.parametrize("date", [True, False])
async def test_what_a_server_asks_to_wait_is_waited_for_and_no_failed_try(
    server: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch, date: bool
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def quick(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("inputs.fetch.asyncio.sleep", quick)
    later = {"Retry-After": "20"}
    if date:  # by the server's own clock, whatever ours says
        later = {
            "Date": "Tue, 01 Dec 2020 10:00:00 GMT",
            "Retry-After": "Tue, 01 Dec 2020 10:00:20 GMT",
        }
    server.answer = lambda _: (
        Reply(429, headers=later) if len(server.asked) < 9 else Reply(body=CONTENT)
    )
    assert await get(server, path, tries=3) == blob(CONTENT)
    assert waits == [20.0] * 8


async def test_a_wait_beyond_the_time_that_is_left_fails_at_once(
    server: WebServer, path: Path
) -> None:
    server.answer = lambda _: Reply(503, headers={"Retry-After": "7200"})
    with pytest.raises(InputUnreachable, match="asks to wait 7200 seconds"):
        await get(server, path, total_seconds=3600)
    assert len(server.asked) == 1


def test_a_server_may_take_longer_for_its_answer_than_between_two_bytes() -> None:
    """Some make the file only when they are asked."""
    assert Web().answer_seconds > 45 > Web().read_seconds


async def test_a_server_that_says_nothing(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=b"xy", silent_after=1)
    with pytest.raises(InputUnreachable, match=r"nothing came for 0\.1 seconds"):
        await get(server, path, read_seconds=0.1, tries=1)
    assert not path.exists()


async def test_a_stream_that_trickles_without_an_end(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=b"x", endless=True)
    with pytest.raises(InputUnreachable, match=r"not whole after 0\.3 seconds"):
        await get(server, path, total_seconds=0.3, expected_sha256="0" * 64)
    assert not path.exists()


async def test_tries_and_waits_count_as_time(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(503)
    with pytest.raises(InputUnreachable, match="not whole after"):
        await get(server, path, total_seconds=0.3, tries=10**6)


async def test_who_is_cancelled_leaves_nothing_behind(server: WebServer, path: Path) -> None:
    server.answer = lambda _: Reply(body=CONTENT, silent_after=HALF)
    arrived = asyncio.Event()
    fetching = asyncio.create_task(get(server, path, on_bytes=lambda _: arrived.set()))
    await arrived.wait()
    assert list(path.parent.iterdir()) != []
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert list(path.parent.iterdir()) == []


async def test_who_counts_may_say_that_it_is_enough(server: WebServer, path: Path) -> None:
    def enough(_count: int) -> None:
        raise InputTooLarge("with the others")

    server.answer = lambda _: Reply(body=CONTENT)
    with pytest.raises(InputTooLarge, match="with the others"):
        await get(server, path, on_bytes=enough)
    assert not path.exists()


# ---- this worker's disk


async def test_a_full_disk_is_said_in_words(
    server: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/path")

    monkeypatch.setattr(fetch_module, "write_at", fail)
    server.answer = lambda _: Reply(body=b"x")
    with pytest.raises(InputNotStored, match=r"No space left on device$") as caught:
        await get(server, path)
    assert caught.value.retryable
    assert len(server.asked) == 1


async def test_a_folder_that_is_not_there(server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(InputNotStored, match="No such file"):
        await get(server, tmp_path / "nowhere" / "file")
    assert server.asked == []
