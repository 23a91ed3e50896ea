"""Fetching a file over a line that breaks, links that expire, and files that are replaced."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from podjobs import retrying
from podjobs.downloads import Downloader
from podjobs.errors import TransferFailed
from podjobs.models import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"0123456789" * 200_000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_DELAY", 0.001)


@contextmanager
def server(handle: Any) -> Iterator[str]:
    """A web server whose GETs `handle` answers."""

    class Handler(BaseHTTPRequestHandler):
        do_GET = handle  # noqa: N815 - the base class calls it so

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as own:
        thread = threading.Thread(target=own.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{own.server_port}"
        finally:
            own.shutdown()
            thread.join()


class Asks:
    """A worker that hands out one link after another."""

    shows_progress = True

    def __init__(self, *urls: str) -> None:
        self.urls = [*urls]

    async def ask(self, request: dict[str, Any], *, low_priority: bool = False) -> dict[str, Any]:
        del low_priority
        assert request["action"] == "download"
        row = {"path": request["path"], "size": len(DATA), "sha256": DIGEST}
        return {"files": [{**row, "url": self.urls.pop(0)}]}


async def download(out: Path, url: str, *later: str, sha256: str | None = DIGEST) -> int:
    """Fetch one file; returns the bytes that were told."""
    told = 0

    def got(count: int) -> None:
        nonlocal told
        told += count

    file = RemoteFile(path="model.bin", size=len(DATA), sha256=sha256, url=url)
    async with httpx.AsyncClient() as http:
        asks: Any = Asks(*later)
        await Downloader("p1", asks, http).download([file], out, got=got)
    return told


def answer(
    request: BaseHTTPRequestHandler, data: bytes, *, breaks_after: int | None = None
) -> None:
    """Answer a GET, honouring Range; perhaps hang up in the middle."""
    asked = request.headers.get("Range")
    first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    request.send_response(206 if asked else 200)
    request.send_header("Content-Length", str(len(data) - first))
    request.send_header("ETag", '"one"')
    request.end_headers()
    request.wfile.write(data[first:breaks_after])


async def test_a_broken_line_goes_on_by_range(tmp_path: Path) -> None:
    ranges = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        ranges.append(request.headers.get("Range"))
        answer(request, DATA, breaks_after=700_000 if len(ranges) == 1 else None)

    with server(handle) as url:
        told = await download(tmp_path, url)

    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert ranges[0] is None
    assert ranges[1] is not None
    assert told == len(DATA)


async def test_a_stopped_download_goes_on_in_the_next_one(tmp_path: Path) -> None:
    sent = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        sent.append(request.headers.get("Range"))
        if len(sent) == 1:
            answer(request, DATA, breaks_after=700_000)
        elif len(sent) <= retrying.TRIES:
            request.send_error(500)
        else:
            answer(request, DATA)

    with server(handle) as url:
        with pytest.raises(TransferFailed):
            await download(tmp_path, url)
        assert not (tmp_path / "model.bin").exists()
        await download(tmp_path, url)

    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert sent[-1].startswith("bytes=")


async def test_an_expired_link_is_replaced(tmp_path: Path) -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        request.send_error(403) if request.path == "/old" else answer(request, DATA)

    with server(handle) as url:
        told = await download(tmp_path, f"{url}/old", f"{url}/new")

    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert told == len(DATA)


async def test_wrong_bytes_never_become_the_file(tmp_path: Path) -> None:
    def handle(request: BaseHTTPRequestHandler) -> None:
        answer(request, DATA[::-1] if request.path == "/damaged" else DATA)

    with server(handle) as url:
        await download(tmp_path, f"{url}/damaged", f"{url}/sound")

    assert (tmp_path / "model.bin").read_bytes() == DATA


async def test_a_file_that_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(DATA)
    assert await download(tmp_path, "http://127.0.0.1:1/nothing-listens") == len(DATA)


async def test_a_refused_file_fails_in_words(tmp_path: Path) -> None:
    with (
        server(lambda request: request.send_error(400)) as url,
        pytest.raises(TransferFailed, match=r"model\.bin could not be fetched: HTTP 400"),
    ):
        await download(tmp_path, url)
