"""What libcurl sends for the worker, and what becomes of answers that are none."""

from __future__ import annotations

import gc
import socket
import threading
import traceback
import weakref
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import certifi
import pytest
from botocore import exceptions as boto

from storage import StorageMisconfigured, StorageUnavailable
from stores.s3_connections import CHUNK, Connections
from stores.s3_files import Body, Stop
from stores.s3_store import S3Store
from tests.faulty_s3 import Answer, FaultyS3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stores.s3_connections import Head
    from tests.servers import S3Server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def connections(**more: Any) -> Iterator[Connections]:
    settings = {
        "connect_timeout": 3.0,
        "read_timeout": 1.0,
        "certificates": certifi.where(),
        "proxy": None,
    }
    with closing(Connections(**settings | more)) as opened:
        yield opened


class Server:
    """Says each of `answers` to one connection after the other, and keeps what it was sent."""

    def __init__(self, answers: list[list[bytes]]) -> None:
        self._answers = answers
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answers in self._answers:
            with self._socket.accept()[0] as peer:
                for answer in answers:
                    self.heard.append(_request(peer))
                    peer.sendall(answer)

    def close(self) -> None:
        self._thread.join(10)
        self._socket.close()


def _request(peer: socket.socket) -> bytes:
    """Head and body of one."""
    came = b""
    while b"\r\n\r\n" not in came:
        came += peer.recv(65536)
    head, _, body = came.partition(b"\r\n\r\n")
    length = int(dict(_lines(head)).get("content-length", 0))
    while len(body) < length:
        body += peer.recv(65536)
    return head + b"\r\n\r\n" + body


def _lines(head: bytes) -> list[tuple[str, str]]:
    pairs = [line.split(":", 1) for line in head.decode().split("\r\n")[1:]]
    return [(name.lower(), value.strip()) for name, value in pairs]


def collected(into: bytearray) -> Callable[[Head], Callable[[bytes], object]]:
    return lambda _: into.extend


def nothing_taken(_: Head) -> Callable[[bytes], object]:
    raise AssertionError("there was no success")


def test_only_what_was_signed_and_what_http_needs_is_sent() -> None:
    with closing(Server([[OK]])) as server, connections() as sending:
        headers = {"User-Agent": "me", "x-amz-date": "now"}
        sending.send(f"{server.url}a/../%7Eb", headers, None, collected(bytearray()))
    head = server.heard[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"GET /a/../%7Eb HTTP/1.1\r\n")
    assert [name for name, _ in _lines(head)] == ["host", "user-agent", "x-amz-date"]


@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK + 1])
def test_a_body_arrives_as_it_is(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    with closing(Server([[OK]])) as server, connections() as sending:
        body = Body(memoryview(data), Stop())
        sending.send(server.url, {"Content-Length": str(size)}, body, collected(bytearray()))
    head, _, came = server.heard[0].partition(b"\r\n\r\n")
    assert [value for name, value in _lines(head) if name == "content-length"] == [str(size)]
    assert came == data


def test_one_connection_serves_many_requests() -> None:
    with closing(Server([[OK, OK, OK]])) as server, connections() as sending:
        for _ in range(3):
            taken = bytearray()
            sending.send(server.url, {}, None, collected(taken))
            assert taken == b"ok"
    assert len(server.heard) == 3


def test_what_a_closed_connection_did_not_take_goes_by_another_one() -> None:
    """Stores close those that are idle, and may do so while a request is on its way."""
    data = memoryview(bytes(CHUNK + 5))
    with closing(Server([[OK], [OK]])) as server, connections() as sending:
        for _ in range(2):
            headers = {"Content-Length": str(len(data))}
            sending.send(server.url, headers, Body(data, Stop()), collected(bytearray()))
    assert [len(heard.partition(b"\r\n\r\n")[2]) for heard in server.heard] == [len(data)] * 2


def test_what_a_connection_took_without_an_answer_is_sent_anew() -> None:
    with closing(Server([[OK, b""], [OK]])) as server, connections() as sending:
        for _ in range(2):
            body = Body(memoryview(b"1"), Stop())
            sending.send(server.url, {"Content-Length": "1"}, body, collected(bytearray()))
    assert len(server.heard) == 3


def test_what_is_sent_once_is_not_sent_anew() -> None:
    """A conditional write would be refused because of its own success."""
    with closing(Server([[OK, b""]])) as server, connections() as sending:

        def send() -> None:
            body = Body(memoryview(b"1"), Stop(), once=True)
            sending.send(server.url, {"Content-Length": "1"}, body, collected(bytearray()))

        send()
        with pytest.raises(boto.ConnectionClosedError):
            send()
    assert len(server.heard) == 2


def test_an_empty_body_that_is_sent_once_has_a_connection_of_its_own() -> None:
    """libcurl would send it anew if it got no answer on one that was used before."""
    used: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server, connections() as sending:

        def serve() -> None:
            for answer in (OK, b""):
                used.append(server.accept()[0])
                _request(used[-1])
                used[-1].sendall(answer)
            used[-1].close()

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        sending.send(url, {}, None, collected(bytearray()))
        with pytest.raises(boto.ConnectionClosedError):
            sending.send(
                url,
                {"Content-Length": "0"},
                Body(memoryview(b""), Stop(), once=True),
                nothing_taken,
            )
        serving.join(10)
        used[0].close()


def test_the_last_head_counts_whatever_came_before_it() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nETag: wrong\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nETAG:  right \r\nContent-Length: 0\r\n\r\n"
    with closing(Server([[interim + answer]])) as server, connections() as sending:
        head, _ = sending.send(server.url, {}, None, collected(bytearray()))
    assert (head.status, head.headers["etag"]) == (200, "right")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b'HTTP/1.1 200 OK\r\nETag: "x"\r\n',
        b"HTTP/odd: answer\r\n\r\n",
    ],
    ids=[
        "none",
        "not http",
        "no length",
        "cut short",
        "chunks cut short",
        "no chunks",
        "head cut short",
        "no status",
    ],
)
def test_half_an_answer_is_none(answer: bytes) -> None:
    with (
        closing(Server([[answer]])) as server,
        connections() as sending,
        pytest.raises(boto.ConnectionClosedError),
    ):
        sending.send(server.url, {}, None, collected(bytearray()))


@pytest.mark.parametrize("told", [1, 3])
def test_chunks_of_another_length_than_was_told_are_not_taken(told: int) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\n\r\n"
    )
    with (
        closing(Server([[answer % told]])) as server,
        connections() as sending,
        pytest.raises(boto.IncompleteReadError),
    ):
        sending.send(server.url, {}, None, collected(bytearray()))


@pytest.mark.parametrize("value", ["a\nEvil: 1", "a\r", "a\0"])
def test_a_header_is_one_line(value: str) -> None:
    with connections() as sending, pytest.raises(ValueError, match="line break"):
        sending.send("http://127.0.0.1:1/", {"x-amz-security-token": value}, None, nothing_taken)


def test_what_was_signed_is_sent_though_it_is_empty() -> None:
    with closing(Server([[OK]])) as server, connections() as sending:
        sending.send(server.url, {"x-amz-meta": ""}, None, collected(bytearray()))
    assert b"\r\nx-amz-meta:\r\n" in server.heard[0]


def test_a_login_of_a_proxy_is_in_no_error() -> None:
    with connections(proxy="http://us er:hidden@[bad") as sending:
        with pytest.raises(boto.BotoCoreError) as raised:
            sending.send("http://127.0.0.1:1/", {}, None, nothing_taken)
        assert "hidden" not in "".join(traceback.format_exception(raised.value))


def test_what_was_stopped_keeps_no_memory() -> None:
    class Taken:
        def take(self, _: bytes) -> None:
            raise StorageUnavailable("stopped")

    taken = Taken()
    seen = weakref.ref(taken)
    gc.disable()
    try:
        with closing(Server([[OK]])) as server, connections() as sending:
            with suppress(StorageUnavailable):
                sending.send(server.url, {}, None, lambda _, taken=taken: taken.take)  # type: ignore[misc]
            del taken
            assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("status", [b"200 OK", b"503 Slow Down"])
@pytest.mark.parametrize("says", [b"", b"ok"], ids=["no body", "a body"])
def test_what_was_sent_is_not_kept(status: bytes, says: bytes) -> None:
    answer = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(says), says)
    body = Body(memoryview(b"1"), Stop())
    seen = weakref.ref(body)
    gc.disable()
    try:
        with closing(Server([[answer]])) as server, connections() as sending:
            sending.send(server.url, {"Content-Length": "1"}, body, collected(bytearray()))
            del body
            assert seen() is None
    finally:
        gc.enable()


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, connections() as sending:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(boto.ReadTimeoutError):
            sending.send(url, {}, None, nothing_taken)


def test_what_takes_the_bytes_may_stop_them() -> None:
    def full(_: bytes) -> None:
        raise StorageUnavailable("stopped")

    with (
        closing(Server([[OK]])) as server,
        connections() as sending,
        pytest.raises(StorageUnavailable, match="stopped"),
    ):
        sending.send(server.url, {}, None, lambda _: full)


def test_what_is_sent_may_be_stopped() -> None:
    stop = Stop()
    stop.set()
    with socket.create_server(("127.0.0.1", 0)) as server, connections() as sending:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(StorageUnavailable, match="stopped"):
            sending.send(url, {"Content-Length": "1"}, Body(memoryview(b"1"), stop), nothing_taken)


def test_a_refusal_goes_to_nobody_who_waits_for_bytes() -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nwhy?"
    with closing(Server([[refusal]])) as server, connections() as sending:
        (status, _), why = sending.send(server.url, {}, None, nothing_taken)
    assert (status, why) == (403, b"why?")


async def test_reads_go_through_the_proxy_of_the_environment(
    ceph: S3Server, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.rule = lambda _: Answer(
        200, b"1", (("ETag", '"x"'), ("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT"))
    )
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "")
    store = S3Store(**ceph.place() | {"endpoint_url": "http://store.invalid"})  # type: ignore[arg-type]
    assert (await store.get("a")).data == b"1"
    await store.close()
    assert proxy.asked[0].path.startswith("http://store.invalid/")


async def test_a_host_in_capitals_is_signed_as_it_is_sent(ceph: S3Server, proxy: FaultyS3) -> None:
    url = proxy.url.replace("127.0.0.1", "LocalHost")
    store = S3Store(**ceph.place() | {"endpoint_url": url})  # type: ignore[arg-type]
    await store.put("a", b"1")
    assert (await store.get("a")).data == b"1"
    await store.close()


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("https", "TLS certificate .* is not trusted: set S3_TLS_BUNDLE"),
        ("http-as-https", "does not speak TLS: S3_ENDPOINT_URL begins http://"),
    ],
)
async def test_tls_that_cannot_be_says_what_to_change(
    ceph: S3Server, scheme: str, says: str
) -> None:
    url = ceph.tls_url if scheme == "https" else ceph.endpoint_url.replace("http:", "https:")
    store = S3Store(**ceph.place() | {"endpoint_url": url}, retry_seconds=1.0)  # type: ignore[arg-type]
    with pytest.raises(StorageMisconfigured, match=says):
        await store.get("a")
    await store.close()
