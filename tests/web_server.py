"""A web server on this machine that answers as a test wants it to.

with WebServer(lambda asked: Reply(body=b"hello")) as server:
    ... server.url ... server.asked ... server.sent_bytes
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping


class Asked(NamedTuple):
    """A request that came in."""

    #: With the query.
    path: str
    #: Names in lower case.
    headers: dict[str, str]


class Reply(NamedTuple):
    """An answer, honest or not."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    #: What to say as Content-Length; None: the truth.
    announced: int | None = None
    #: Bytes of the body after which the connection breaks.
    breaks_after: int | None = None
    #: Bytes of the body after which nothing comes until the server stops.
    silent_after: int | None = None
    #: The body again and again, without any Content-Length.
    endless: bool = False
    #: The body in one HTTP chunk, whatever Content-Length there is.
    chunked: bool = False
    #: No Content-Length: the body ends as the connection does.
    unannounced: bool = False


class WebServer:
    """On a free port of 127.0.0.1; `answer` may be changed at any time."""

    def __init__(
        self,
        answer: Callable[[Asked], Reply] = lambda _: Reply(),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        #: Of bodies, over all answers.
        self.sent_bytes = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"web": self})
        )
        self._server.daemon_threads = True
        # a client that does not trust us breaks off in the middle of a handshake
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self._closing.callback(thread.join)
        self._closing.callback(self._server.server_close)
        self._closing.callback(self._server.shutdown)
        self._closing.callback(self.released.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: ClassVar[WebServer]

    def do_GET(self) -> None:
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
        with self.web.lock:
            self.web.asked.append(asked)
            reply = self.web.answer(asked)
        self.close_connection = True
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        if reply.announced is not None or not (reply.chunked or reply.endless or reply.unannounced):
            announced = len(reply.body) if reply.announced is None else reply.announced
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        with suppress(OSError):  # the client has had enough
            for data in self._body(reply):
                self.wfile.write(data)
                self.wfile.flush()

    def _body(self, reply: Reply) -> Iterator[bytes]:
        if reply.status in (204, 304):
            return
        if reply.chunked:
            if reply.body:  # an empty chunk is the end
                yield f"{len(reply.body):x}\r\n".encode() + reply.body[: reply.breaks_after]
            if reply.breaks_after is None:
                yield b"\r\n0\r\n\r\n" if reply.body else b"0\r\n\r\n"
            return
        stop = reply.breaks_after if reply.silent_after is None else reply.silent_after
        yield self._counted(reply.body[:stop])
        if reply.silent_after is not None:
            self.web.released.wait(60)
        while reply.endless and not self.web.released.wait(0.001):
            yield self._counted(reply.body)

    def _counted(self, data: bytes) -> bytes:
        with self.web.lock:
            self.web.sent_bytes += len(data)
        return data

    def log_message(self, *_: object) -> None:
        """Tests tell what they saw themselves."""


def in_turn(*replies: Reply) -> Callable[[Asked], Reply]:
    """One reply for each request; the last one for all that follow."""
    waiting = list(replies)
    return lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]


def rest(content: bytes, first: int, **headers: str) -> Reply:
    """The honest answer to a request for what begins at `first`."""
    span = f"bytes {first}-{len(content) - 1}/{len(content)}"
    return Reply(206, content[first:], {"Content-Range": span, **headers})
