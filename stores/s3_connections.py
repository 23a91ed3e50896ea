"""Requests sent by libcurl: to send and to receive is its work, not Python's.

Many threads send files at a time. A http client in Python takes the interpreter's lock for each
line that it reads, and all others wait for it, the event loop too; libcurl hands over whole chunks.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import pycurl
from botocore import exceptions as boto

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stores.s3_files import Body

    #: Is told how a success begins and gives what takes its body, chunk by chunk.
    Taker = Callable[["Head"], Callable[[bytes], object]]

#: Bytes that libcurl sends, or asks the system for, at a time, at most.
CHUNK = 256 << 10
#: Bytes per second that even a poor link moves; more time is given to larger writes.
SLOW = 1 << 20
#: Bytes of a refusal that are read; S3's have some hundreds.
MAX_REFUSAL = 1 << 20


class Head(NamedTuple):
    """How an answer begins."""

    status: int
    #: By names in lower case.
    headers: Mapping[str, str]

    @property
    def success(self) -> bool:
        return 200 <= self.status < 300


class Answer(NamedTuple):
    """What came, without the body of a success: that went where the request said."""

    head: Head
    #: The body of what is no success.
    refusal: bytes


class Connections:
    """To one place, kept open between requests. Blocking, thread-safe."""

    def __init__(
        self, *, connect_timeout: float, read_timeout: float, certificates: str, proxy: str | None
    ) -> None:
        """Times in seconds: to connect, and without a byte (in whole seconds, rounded up).

        `certificates` is a file of those to trust.
        """
        self._options = {
            pycurl.NOSIGNAL: 1,  # threads
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.PATH_AS_IS: 1,  # what was signed
            pycurl.CAINFO: certificates,
            pycurl.PROXY_CAINFO: certificates,
            pycurl.PROXY: proxy or "",  # and not what libcurl makes of the environment
            pycurl.NOPROXY: "",
            pycurl.CONNECTTIMEOUT_MS: math.ceil(1000 * connect_timeout),
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: math.ceil(read_timeout),
            pycurl.TCP_KEEPALIVE: 1,
            pycurl.BUFFERSIZE: CHUNK,
            pycurl.UPLOAD_BUFFERSIZE: CHUNK,
        }
        self._read_timeout = read_timeout
        self._idle: list[pycurl.Curl] = []
        self._closed = False

    def send(self, url: str, headers: Mapping[str, str], body: Body | None, taker: Taker) -> Answer:
        """Send a GET, or with a body a PUT, and take the whole answer.

        A request on a connection that the store had closed meanwhile is sent anew, on another one.
        If its body is to be sent once, so it is only while nothing of that has been sent; and
        it has `read_timeout` in all, and more if it is large.

        Raises:
            BotoCoreError: there was no answer, or half of one, as botocore says it.
            ValueError: a header cannot be sent.
            Exception: what `body` or `taker` raised.
        """
        exchange = _Exchange(body, taker)
        handle = self._handle()
        try:
            self._prepare(handle, url, headers, exchange)
            handle.perform()
        except pycurl.error as error:
            # popped: what is raised must not lead to what was to be received, nor that back to it
            if exchange.failures:
                raise exchange.failures.pop() from None
            raise _failure(error, handle, url) from None  # libcurl's words may name a proxy's login
        finally:
            self._take_back(handle)
        return exchange.answer(url)

    def close(self) -> None:
        """Let go of all that are idle, and of the others as they become so."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _handle(self) -> pycurl.Curl:
        try:
            return self._idle.pop()  # the last one used: its connection is the surest to live
        except IndexError:
            return pycurl.Curl()

    def _take_back(self, handle: pycurl.Curl) -> None:
        handle.reset()  # lets go of bodies; connections stay
        if self._closed:
            handle.close()
        else:
            self._idle.append(handle)

    def _prepare(
        self, handle: pycurl.Curl, url: str, headers: Mapping[str, str], exchange: _Exchange
    ) -> None:
        for option, value in self._options.items():
            handle.setopt(option, value)
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.HTTPHEADER, _lines(headers))
        handle.setopt(pycurl.HEADERFUNCTION, exchange.on_header)
        handle.setopt(pycurl.WRITEFUNCTION, exchange.on_chunk)
        if exchange.body is not None:
            handle.setopt(pycurl.UPLOAD, 1)
            handle.setopt(pycurl.INFILESIZE_LARGE, len(exchange.body))
            handle.setopt(pycurl.READFUNCTION, exchange.on_read)
            if exchange.body.once:
                self._prepare_once(handle, len(exchange.body))
            else:
                handle.setopt(pycurl.SEEKFUNCTION, exchange.on_seek)

    def _prepare_once(self, handle: pycurl.Curl, size: int) -> None:
        """Without a way to rewind what it has read libcurl sends no body anew, but an empty one is
        not read, and is sent anew on connections that were used before."""
        handle.setopt(pycurl.FRESH_CONNECT, 0 if size else 1)
        # Silence is seen late: for some seconds it is the mean with the bytes that were sent. And
        # who waits for this has to look afterwards what came of it, before a lease is over.
        handle.setopt(pycurl.TIMEOUT_MS, math.ceil(1000 * (self._read_timeout + size / SLOW)))


def _lines(headers: Mapping[str, str]) -> list[str]:
    """As libcurl wants them: without a value a header of its own is not sent."""
    lines = ["Accept:"] if "Expect" in headers else ["Accept:", "Expect:"]
    for name, value in headers.items():
        if any(character in value for character in "\r\n\0"):
            raise ValueError(f"the header {name} has a line break in it")
        if name != "Content-Length":  # libcurl says it
            lines.append(f"{name}: {value}" if value else f"{name};")
    return lines


def _stopping(with_: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What a callback raises stops the request and is raised by `send`; pycurl would print it."""

    def decorate(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def guarded(exchange: _Exchange, *args: Any) -> Any:
            try:
                return call(exchange, *args)
            except Exception as failure:  # noqa: BLE001
                exchange.failures.append(failure)
                return with_

        return guarded

    return decorate


class _Exchange:
    """One request on its way, as libcurl tells of it."""

    def __init__(self, body: Body | None, taker: Taker) -> None:
        self.body = body
        self._taker = taker
        self._begin(0)
        #: What stopped it.
        self.failures: list[Exception] = []

    def _begin(self, status: int) -> None:
        """An answer, after which another one may come: interim ones, a proxy's, a 417."""
        self._status = status
        self._headers: dict[str, str] = {}
        self._head_ended = False
        self._take: Callable[[bytes], object] | None = None
        self._came = 0
        self._refusal = bytearray()

    def answer(self, url: str) -> Answer:
        """Raises BotoCoreError if it is not whole. libcurl believes chunks before a length, and
        takes the end of a connection for the end of a head."""
        if not self._head_ended:
            raise boto.ConnectionClosedError(endpoint_url=url)
        head = Head(self._status, self._headers)
        if head.success:
            told = int(head.headers.get("content-length", self._came))
            if told != self._came:
                raise boto.IncompleteReadError(actual_bytes=self._came, expected_bytes=told)
            if not self._came:
                self._taker(head)  # one without a body is told of, too
        return Answer(head, bytes(self._refusal))

    @_stopping(-1)
    def on_header(self, line: bytes) -> None:
        text = line.decode("latin-1").rstrip("\r\n")
        if text.startswith("HTTP/"):
            self._begin(int(text.split(maxsplit=2)[1]))
        elif ":" in text:
            name, _, value = text.partition(":")
            self._headers[name.strip().lower()] = value.strip()
        elif not text:
            self._head_ended = True

    def on_chunk(self, chunk: bytes) -> int | None:
        """Called for every 16 KiB, which is as much as libcurl hands over at a time, with Python's
        lock held: nothing here that need not be."""
        try:
            if self._take is None:
                self._take = self._first_taker()
            self._take(chunk)
        except Exception as failure:  # noqa: BLE001
            self.failures.append(failure)
            return -1
        self._came += len(chunk)
        return None

    def _first_taker(self) -> Callable[[bytes], object]:
        """Never a method of this exchange: it would hold itself, and the body that it sent."""
        head = Head(self._status, self._headers)
        return self._taker(head) if head.success else partial(_keep, self._refusal)

    @_stopping(pycurl.READFUNC_ABORT)
    def on_read(self, size: int) -> bytes:
        assert self.body is not None
        return self.body.read(size)

    @_stopping(pycurl.SEEKFUNC_FAIL)
    def on_seek(self, offset: int, _origin: int) -> int:
        """To the beginning, when it has to be sent anew."""
        assert self.body is not None
        self.body.seek(offset)
        return int(pycurl.SEEKFUNC_OK)


def _keep(refusal: bytearray, chunk: bytes) -> None:
    refusal += chunk[: MAX_REFUSAL - len(refusal)]


def _failure(error: pycurl.error, handle: pycurl.Curl, url: str) -> boto.BotoCoreError:
    """As botocore would say it, without libcurl's words."""
    code, words = error.args
    why = Exception(f"libcurl's error {code}")
    match code:
        case pycurl.E_OPERATION_TIMEDOUT if not handle.getinfo(pycurl.PRETRANSFER_TIME):
            return boto.ConnectTimeoutError(endpoint_url=url, error=why)
        case pycurl.E_OPERATION_TIMEDOUT:
            return boto.ReadTimeoutError(endpoint_url=url, error=why)
        case pycurl.E_COULDNT_RESOLVE_HOST | pycurl.E_COULDNT_CONNECT:
            return boto.EndpointConnectionError(endpoint_url=url, error=why)
        case pycurl.E_PEER_FAILED_VERIFICATION | pycurl.E_SSL_CACERT_BADFILE:
            return boto.SSLError(endpoint_url=url, error=Exception("CERTIFICATE_VERIFY_FAILED"))
        case pycurl.E_SSL_CONNECT_ERROR if "wrong version number" in words:
            return boto.SSLError(endpoint_url=url, error=Exception("WRONG_VERSION_NUMBER"))
        case pycurl.E_SSL_CONNECT_ERROR:
            return boto.SSLError(endpoint_url=url, error=why)
        case _:
            return boto.ConnectionClosedError(endpoint_url=url, error=why)
