"""A file from the web whose connection breaks goes on where it broke, or begins anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from inputs.errors import InputMismatch
from inputs.fetch import validator
from tests.fetching import CONTENT, HALF, STRONG, blob, get
from tests.web_server import Asked, Reply, WebServer, in_turn, rest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is to be."""
    return tmp_path / "file"


def asks_for(asked: Asked) -> tuple[str | None, str | None]:
    return asked.headers.get("range"), asked.headers.get("if-range")


async def test_what_broke_off_goes_on_where_it_broke(server: WebServer, path: Path) -> None:
    server.answer = in_turn(
        Reply(body=CONTENT, headers=STRONG, breaks_after=HALF), rest(CONTENT, HALF, ETag='"v1"')
    )
    assert await get(server, path) == blob(CONTENT, '"v1"')
    assert path.read_bytes() == CONTENT
    assert server.sent_bytes == len(CONTENT)
    assert asks_for(server.asked[1]) == (f"bytes={HALF}-", '"v1"')


async def test_who_gets_further_each_time_is_not_given_up(server: WebServer, path: Path) -> None:
    content = CONTENT[:30]

    def five_more(asked: Asked) -> Reply:
        first = int(asked.headers.get("range", "bytes=0-")[6:-1])
        whole = rest(content, first) if first else Reply(body=content)
        return whole._replace(headers={**whole.headers, **STRONG}, breaks_after=5)

    server.answer = five_more
    assert await get(server, path, tries=1) == blob(content, '"v1"')
    assert len(server.asked) == 6


async def test_a_server_may_give_less_than_the_rest(server: WebServer, path: Path) -> None:
    server.answer = in_turn(
        Reply(body=b"0123456789", headers=STRONG, breaks_after=2),
        Reply(206, b"234", {"Content-Range": "bytes 2-4/10"}),
        rest(b"0123456789", 5),
    )
    assert await get(server, path) == blob(b"0123456789", '"v1"')


async def test_a_part_says_how_long_the_whole_is(server: WebServer, path: Path) -> None:
    """The first answer did not, and the second gives less than the rest."""
    server.answer = in_turn(
        Reply(body=b"0123456789", headers=STRONG, chunked=True, breaks_after=2),
        Reply(206, b"234", {"Content-Range": "bytes 2-4/10"}),
        rest(b"0123456789", 5),
    )
    assert await get(server, path) == blob(b"0123456789", '"v1"')


async def test_what_is_thrown_away_is_taken_back_from_the_count(
    server: WebServer, path: Path
) -> None:
    """Or a limit on the sum would count it twice."""
    server.answer = in_turn(Reply(body=CONTENT, breaks_after=HALF), Reply(body=CONTENT))
    counts: list[int] = []
    await get(server, path, on_bytes=counts.append)
    assert min(counts) < 0
    assert sum(counts) == len(CONTENT)


async def test_what_changed_meanwhile_begins_anew(server: WebServer, path: Path) -> None:
    new = CONTENT[:1000]  # shorter than what was here already
    server.answer = in_turn(
        Reply(body=CONTENT, headers=STRONG, breaks_after=HALF),
        Reply(body=new, headers={"ETag": '"v2"'}),
    )
    assert await get(server, path) == blob(new, '"v2"')
    assert path.read_bytes() == new


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"v1"'}, {"Last-Modified": "yesterday"}])
async def test_without_proof_that_it_is_the_same_it_begins_anew(
    server: WebServer, path: Path, headers: dict[str, str]
) -> None:
    server.answer = in_turn(
        Reply(body=CONTENT, headers=headers, breaks_after=HALF), Reply(body=b"", headers=headers)
    )
    await get(server, path)
    assert [asks_for(asked) for asked in server.asked] == [(None, None)] * 2
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "second",
    [
        rest(b"0123456789", 0),
        rest(b"0123456789", 6),
        rest(b"0123456789abc", 5),
        rest(b"0123456789", 5, ETag='"v2"'),
        Reply(206, b"56789"),
        Reply(416),
        Reply(206, b"56789", {"Content-Range": "bytes 5-9/*"}),
        Reply(206, b"56789", {"Content-Range": "bytes 5-10/10"}),
    ],
)
async def test_a_part_that_does_not_fit_is_not_used(
    server: WebServer, path: Path, second: Reply
) -> None:
    server.answer = in_turn(
        Reply(body=b"01234xxxxx", headers=STRONG, breaks_after=5), second, Reply(body=b"0123456789")
    )
    assert await get(server, path) == blob(b"0123456789")
    assert asks_for(server.asked[1]) == ("bytes=5-", '"v1"')
    assert asks_for(server.asked[2]) == (None, None)


async def test_a_rest_that_is_longer_than_it_says(server: WebServer, path: Path) -> None:
    long = rest(b"0123456789", 5)._replace(body=b"56789abc", chunked=True)
    server.answer = in_turn(Reply(body=b"0123456789", headers=STRONG, breaks_after=5), long)
    with pytest.raises(InputMismatch, match="more than the 10 bytes"):
        await get(server, path)


NOON, A_SECOND_LATER = "Mon, 02 Nov 2026 12:00:00 GMT", "Mon, 02 Nov 2026 12:00:01 GMT"


@pytest.mark.parametrize(
    ("headers", "proof"),
    [
        ({"ETag": '"v1"', "Last-Modified": NOON, "Date": A_SECOND_LATER}, '"v1"'),
        ({"ETag": 'W/"v1"', "Last-Modified": NOON, "Date": A_SECOND_LATER}, NOON),
        ({"Last-Modified": NOON, "Date": A_SECOND_LATER}, NOON),
        ({"Last-Modified": NOON, "Date": NOON}, None),
        ({"Last-Modified": NOON}, None),
        ({"Last-Modified": "Mon, 02 Nov 2026 12:00:00", "Date": A_SECOND_LATER}, None),
        ({"Last-Modified": NOON, "Date": f"{NOON[:-3]}+99999999999999999999"}, None),
        ({"ETag": '"' + "x" * 2000 + '"'}, None),
        ({}, None),
    ],
)
def test_what_proves_that_a_file_is_the_same(headers: dict[str, str], proof: str | None) -> None:
    assert validator(httpx.Headers(headers)) == proof
