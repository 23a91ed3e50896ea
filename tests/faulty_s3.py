"""A proxy in front of an S3 server that breaks what it is told to break.

    with FaultyS3(server.endpoint_url) as proxy:
        proxy.rule = every(3, Fault.LOST_ANSWER)

It keeps the Host header that the client signed, so that a real server accepts what comes through.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from contextlib import ExitStack, nullcontext
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self
from urllib.parse import parse_qs, parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable


class Fault(Enum):
    """What may happen to a request."""

    LOST_REQUEST = auto()  #: the connection breaks, the server never hears of it
    LOST_ANSWER = auto()  #: the server does it, the connection breaks
    SLOW_DOWN = auto()  #: 503, not done
    FAILED_AFTER = auto()  #: 500, but done
    SILENT = auto()  #: not done, and no answer until `release`
    HELD = auto()  #: done and answered, but only after `release`
    SILENT_AFTER = auto()  #: done, and no answer until `release`
    TRUNCATED = auto()  #: half of the answer's body


#: By method and a name in the query, the first that fits.
OPERATIONS = {
    ("PUT", "partNumber"): "UploadPart",
    ("PUT", None): "PutObject",
    ("GET", "list-type"): "ListObjectsV2",
    ("GET", "uploadId"): "ListParts",
    ("GET", None): "GetObject",
    ("HEAD", None): "HeadObject",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("DELETE", None): "DeleteObject",
    ("POST", "delete"): "DeleteObjects",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
}


class Asked(NamedTuple):
    """A request that reached the proxy."""

    method: str
    #: With the query.
    path: str
    #: Names in lower case.
    headers: dict[str, str]

    @property
    def conditional(self) -> bool:
        return bool({"if-match", "if-none-match"} & self.headers.keys())

    @property
    def operation(self) -> str:
        """As S3 names it."""
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        for (method, name), operation in OPERATIONS.items():
            if method == self.method and (name is None or name in query):
                return operation
        raise AssertionError(f"{self.method} {self.path}")


class Answer(NamedTuple):
    """An answer in the server's place; or the server's."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def error(cls, status: int, code: str, more: str = "") -> Answer:
        """As S3 says it."""
        return cls(status, f"<Error><Code>{code}</Code>{more}</Error>".encode())


Verdict = Fault | Answer | None


class FaultyS3:
    """The proxy; `asked` and `done` tell what went through."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        #: What to do about a request.
        self.rule: Callable[[Asked], Verdict] = lambda _: None
        #: Headers that are kept from the server.
        self.hidden: set[str] = set()
        #: Makes a server atomic that is not.
        self.one_at_a_time = False
        #: What becomes of a body on its way to the server.
        self.damage: Callable[[bytes], bytes] = lambda body: body
        #: Headers of every answer of the server to set, by names in lower case; None: to leave out.
        self.told: dict[str, str | None] = {}
        #: How the end of an answer's body is told; "close": not at all but by hanging up.
        self.framing: Literal["length", "chunked", "close"] = "length"
        #: Called before a request is passed on.
        self.before: Callable[[Asked], None] = lambda _: None
        self.asked: list[Asked] = []
        #: What the server was asked and how it answered, whatever the client was told.
        self.done: list[tuple[Asked, int]] = []
        self.silenced = threading.Event()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._one = threading.Lock()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self})
        )
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self._closing.callback(thread.join)
        self._closing.callback(self._server.server_close)
        self._closing.callback(self._server.shutdown)
        self._closing.callback(self.release)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def release(self) -> None:
        """Let those go that were kept silent."""
        self._released.set()

    @property
    def requests(self) -> dict[str, int]:
        """How many have come, by operation, those by links aside."""
        signed = [asked for asked in self.asked if "authorization" in asked.headers]
        return dict(Counter(asked.operation for asked in signed))

    def verdict(self, asked: Asked) -> Verdict:
        with self._lock:
            self.asked.append(asked)
            return self.rule(asked)

    def keep_silent(self) -> None:
        self.silenced.set()
        self._released.wait(600)

    def forward(self, asked: Asked, body: bytes) -> Answer:
        """What the server says."""
        headers = {
            k: v
            for k, v in asked.headers.items()
            if k not in {*self.hidden, "expect", "transfer-encoding"}
        }
        self.before(asked)
        with self._one if self.one_at_a_time else nullcontext():
            connection = http.client.HTTPConnection(self._upstream, timeout=60)
            connection.request(asked.method, asked.path, self.damage(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        with self._lock:
            self.done.append((asked, answer.status))
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in self.told]
        told = [(name, value) for name, value in self.told.items() if value is not None]
        return Answer(answer.status, content, (*kept, *told))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[FaultyS3]

    def handle_any(self) -> None:
        body = self._body()
        asked = Asked(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
        )
        match self.proxy.verdict(asked):
            case None | Fault.HELD as fault:
                self._pass(asked, body, held=fault is Fault.HELD)
            case Answer() as answer:
                self._say(answer)
            case Fault.SLOW_DOWN:
                self._say(Answer.error(503, "SlowDown"))
            case Fault.FAILED_AFTER:
                self.proxy.forward(asked, body)
                self._say(Answer.error(500, "InternalError"))
            case Fault.TRUNCATED:
                self._say(self.proxy.forward(asked, body), halved=True)
            case Fault.LOST_ANSWER | Fault.SILENT_AFTER as fault:
                self.proxy.forward(asked, body)
                self._break_off(silent=fault is Fault.SILENT_AFTER)
            case Fault.LOST_REQUEST | Fault.SILENT as fault:
                self._break_off(silent=fault is Fault.SILENT)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return body

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_OPTIONS = handle_any  # noqa: N815

    def _pass(self, asked: Asked, body: bytes, *, held: bool) -> None:
        if held:
            self.proxy.keep_silent()
        self._say(self.proxy.forward(asked, body))

    def _say(self, answer: Answer, *, halved: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        halved_at = len(answer.body) // 2 if halved else len(answer.body)
        self._frame(answer, answer.body[:halved_at])
        self.close_connection = halved or self.proxy.framing == "close"

    def _frame(self, answer: Answer, body: bytes) -> None:
        """Tell how long the answer is, as the proxy was told to, and send `body` of it."""
        if self.command == "HEAD":  # it has no body and tells of the one that it might have
            told = [value for name, value in answer.headers if name.lower() == "content-length"]
            for length in told:
                self.send_header("Content-Length", length)
        elif self.proxy.framing == "length":
            self.send_header("Content-Length", str(len(answer.body)))
        elif self.proxy.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        self.end_headers()
        self.wfile.write(body)

    def _break_off(self, *, silent: bool) -> None:
        if silent:
            self.proxy.keep_silent()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Tests tell what they saw themselves."""


def every(nth: int, fault: Fault) -> Callable[[Asked], Verdict]:
    """Each `nth` request from now on has this fault."""
    count = 0

    def rule(_: Asked) -> Verdict:
        nonlocal count
        count += 1
        return None if count % nth else fault

    return rule


def once(verdict: Verdict, when: Callable[[Asked], bool]) -> Callable[[Asked], Verdict]:
    """The first request that is so."""
    waiting = True

    def rule(asked: Asked) -> Verdict:
        nonlocal waiting
        if waiting and when(asked):
            waiting = False
            return verdict
        return None

    return rule


def always(verdict: Verdict, when: Callable[[Asked], bool]) -> Callable[[Asked], Verdict]:
    """Each request that is so."""
    return lambda asked: verdict if when(asked) else None


def conditional(asked: Asked) -> bool:
    """A compare-and-swap."""
    return asked.method == "PUT" and asked.conditional


def unsigned(asked: Asked) -> Verdict:
    """AWS's own rule about links: each `x-amz-*` header is signed, or the request is refused."""
    query = parse_qs(urlsplit(asked.path).query)
    if "X-Amz-Signature" not in query:
        return None
    signed = query["X-Amz-SignedHeaders"][0].split(";")
    names = {name.replace("_", "-"): name for name in asked.headers}
    if all(name in signed for amz, name in names.items() if amz.startswith("x-amz-")):
        return None
    text = "<Message>There were headers present in the request which were not signed</Message>"
    return Answer.error(403, "AccessDenied", text)
