"""A file from the web: whole and verified, or not at all.

What breaks is taken up where it broke, if the server can prove that it still has the same thing;
else it begins anew. A server is a stranger, too: what it announces is checked against what it
sends, and what it sends has an end, in bytes and in time, whatever it announces.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from datetime import timedelta
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from inputs.errors import (
    InputMismatch,
    InputMissing,
    InputRefused,
    InputTooLarge,
    InputUnreachable,
)
from inputs.files import CHUNK, Blob, disk_errors, new_part_beside, write_at
from inputs.public_web import FAULTS, Hop, Web, visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import httpx

#: "Slow down" and "not now": the same request may be answered later. So is each 5xx.
_LATER = frozenset({408, 429})
_GONE = frozenset({404, 410})
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
#: Nobody needs a longer ETag, and each is kept and sent back.
_MAX_ETAG = 1024
_MAX_WAIT_SECONDS = 10.0
#: Between tries of a server that asks to wait, but for no time at all.
_LEAST_WAIT_SECONDS = 1.0
#: Servers describe a packed file by its encoding (Apache's `AddEncoding`): the bytes are the file.
_PACKED_NAMES = {
    "gzip": (".gz", ".tgz"),
    "x-gzip": (".gz", ".tgz"),
    "bzip2": (".bz2", ".tbz", ".tbz2"),
    "x-bzip2": (".bz2", ".tbz", ".tbz2"),
    "xz": (".xz", ".txz"),
    "x-xz": (".xz", ".txz"),
}


class Limits(NamedTuple):
    """How much, and for how long."""

    #: Of one file.
    max_bytes: int
    #: For one file, all tries and waits included.
    total_seconds: float
    #: Tries in a row that bring nothing new.
    tries: int = 5
    #: The wait after the first of these, at most; it doubles with each.
    backoff_seconds: float = 0.5


class _AskedToWait(InputUnreachable):
    """The server says when to ask again (`Retry-After`)."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Answer(Enum):
    """What the start of an answer means for the file on its way."""

    WHOLE = auto()  #: all of it follows, from its first byte
    REST = auto()  #: what is missing follows
    UNCHANGED = auto()  #: what the caller has is still it
    LATER = auto()  #: nothing follows; the same may be asked again
    ANEW = auto()  #: nothing of use follows; all of it must be asked for again


async def fetch(
    url: str,
    path: Path,
    *,
    web: Web,
    limits: Limits,
    etag: str | None = None,
    expected_sha256: str | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Blob | None:
    """Make `path` what is at `url`, replacing what was there; its folder must exist.

    With `etag` only if that has changed: None, and no file, says that it has not. `on_bytes(n)` is
    called on the event loop as n more bytes are on the disk, and with all of them, below 0, when
    the server cannot go on where it broke off. What it raises ends the fetch.

    Raises:
        InputRefused: the guard, the server or its certificate, see `public_web`; or nothing would
            tell a whole file from the first half of it.
        InputMissing: there is nothing.
        InputTooLarge: more than `limits.max_bytes`.
        InputMismatch: not `expected_sha256` (hex), or not the announced size.
        InputUnreachable: no answer, or none that ended, within `limits`.
        InputNotStored: the disk did not take it.
    """
    async with new_part_beside(path) as part:
        download = _Download(
            part, limits, on_bytes, known_etag=etag, provable=expected_sha256 is not None
        )
        try:
            async with asyncio.timeout(limits.total_seconds):
                changed = await _persist(download, url, web)
        except TimeoutError:
            raise InputUnreachable(
                f"{download.name} was not whole after {limits.total_seconds:g} seconds"
            ) from None
        if not changed:
            return None
        blob = download.blob()
        if expected_sha256 is not None and blob.sha256 != expected_sha256.lower():
            raise InputMismatch(f"{download.name} has the SHA-256 {blob.sha256}, not the given one")
        with disk_errors():
            part.replace(path)
        return blob


async def _persist(download: _Download, url: str, web: Web) -> bool:
    """Try until the file is whole (True) or known to be unchanged (False).

    A wait that the server asks for is no failed try. Raises the last failure when too many tries in
    a row brought nothing new, or when that wait would take longer than the time that is left.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + download.limits.total_seconds
    furthest = failures = 0
    while True:
        try:
            return await _try(download, url, web)
        except _AskedToWait as error:
            if loop.time() + error.seconds > end:
                raise
            await asyncio.sleep(error.seconds)
            continue
        except InputUnreachable as error:
            failure = error
        failures = 0 if download.size > furthest else failures + 1
        furthest = max(furthest, download.size)
        if failures >= download.limits.tries:
            raise failure
        ceiling = min(download.limits.backoff_seconds * 2**failures, _MAX_WAIT_SECONDS)
        await asyncio.sleep(random.uniform(0.0, ceiling))  # noqa: S311 - jitter keeps no secret


async def _try(download: _Download, url: str, web: Web) -> bool:
    """One request and its redirects; as `_persist`. Raises InputUnreachable if it is worth more."""
    async with visit(url, web, download.headers()) as (hop, response):
        download.name = hop.name
        status = response.status_code
        answer = judge(status, response.headers, download, hop)
        if answer is Answer.UNCHANGED:
            return False
        if answer is Answer.LATER:
            raise _later(f"{hop.name} answered with status {status}", response.headers)
        if answer is Answer.ANEW:
            download.forget()
            raise InputUnreachable(f"{hop.name} did not go on where it had broken off")
        _check_encoding(response.headers, hop)
        if answer is Answer.WHOLE:
            download.begin(response.headers)
        else:
            download.go_on(response.headers)
        await _read(download, response, web.read_seconds)
    return True


def _later(sentence: str, headers: httpx.Headers) -> InputUnreachable:
    """By how long the server asks to wait: in seconds, or until a time by its own clock."""
    asked = headers.get("retry-after", "")
    if re.fullmatch("[0-9]{1,9}", asked):
        seconds = float(asked)
    else:
        try:
            now = parsedate_to_datetime(headers.get("date", ""))
            seconds = (parsedate_to_datetime(asked) - now).total_seconds()
        except (TypeError, ValueError, OverflowError):
            return InputUnreachable(sentence)
    sentence = f"{sentence} and asks to wait {seconds:.0f} seconds"
    return _AskedToWait(sentence, max(seconds, _LEAST_WAIT_SECONDS))


def judge(status: int, headers: httpx.Headers, download: _Download, hop: Hop) -> Answer:
    """What to do with an answer, by what was asked for.

    Raises:
        InputMissing, InputRefused: nothing, now and later.
    """
    if status == 200:
        return Answer.WHOLE
    if status in _LATER or status >= 500:
        return Answer.LATER
    if download.resuming and status in (206, 416):
        return Answer.REST if status == 206 and _fits(headers, download) else Answer.ANEW
    if not download.resuming and download.known_etag is not None and status == 304:
        return Answer.UNCHANGED
    if status in _GONE:
        raise InputMissing(f"{hop.name} does not exist (status {status})")
    if status in (401, 403):
        raise InputRefused(f"{hop.name} may not be read (status {status}); has the link expired?")
    raise InputRefused(f"{hop.name} answered with status {status}, which brings no file")


def _fits(headers: httpx.Headers, download: _Download) -> bool:
    """Whether a 206 goes on exactly where the file ends, and is of the same file."""
    found = _RANGE.fullmatch(headers.get("content-range", ""))
    if found is None or _etag(headers) not in (None, download.etag):
        return False
    first, last, total = map(int, found.groups())
    same_size = download.total in (None, total)
    return first == download.size and first <= last < total and same_size


def _check_encoding(headers: httpx.Headers, hop: Hop) -> None:
    """Raises InputRefused for a body that is encoded on its way.

    Unpacked, it would have another size and SHA-256, and no part of it could be asked for. A file
    whose own name says that it is packed so arrives as it is.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity") or hop.url.path.lower().endswith(
        _PACKED_NAMES.get(encoding, ())
    ):
        return
    raise InputRefused(
        f"{hop.name} comes with the Content-Encoding {encoding[:20]!r} though none was asked for; "
        "store it as it is, without that header"
    )


async def _read(download: _Download, response: httpx.Response, silence: float) -> None:
    """Take the body, with no longer silence in it.

    Raises InputUnreachable if it broke off, InputMismatch if it is too long.
    """
    broken = None
    body = response.aiter_raw()
    try:
        while data := await _next(body, silence):
            await download.take(data)
    except TimeoutError:
        broken = f"nothing came for {silence:g} seconds"
    except FAULTS as error:
        broken = type(error).__name__
    await download.flush()
    total = download.total
    if total is not None and download.size > total:
        raise InputMismatch(f"{download.name} has more than the {total} bytes it announced")
    if broken or (total is not None and download.size < total):
        of = "" if total is None else f" of {total}"
        raise InputUnreachable(
            f"{download.name} broke off at byte {download.size}{of}"
            + (f" ({broken})" if broken else "")
        )


async def _next(body: AsyncIterator[bytes], silence: float) -> bytes:
    """The next bytes; none at the end. Raises TimeoutError."""
    async with asyncio.timeout(silence):
        return await anext(body, b"")


class _Download:
    """A file on its way: what is on the disk, and what is known of the rest."""

    def __init__(
        self,
        part: Path,
        limits: Limits,
        on_bytes: Callable[[int], None] | None,
        *,
        known_etag: str | None,
        provable: bool,
    ) -> None:
        self.limits = limits
        #: Of what the caller has.
        self.known_etag = known_etag
        #: Whether the caller knows its SHA-256.
        self._provable = provable
        #: For messages: where it came from the last time.
        self.name = "the input"
        self._part = part
        self._on_bytes = on_bytes
        self.size = 0
        self.forget()

    def forget(self) -> None:
        """Nothing is here, and nothing known."""
        self._tell(-self.size)
        #: Bytes on the disk, all of them hashed.
        self.size = 0
        #: Bytes it will have, as far as the server told.
        self.total: int | None = None
        self.etag: str | None = None
        self._validator: str | None = None
        self._digest = hashlib.sha256()
        self._unwritten = bytearray()

    def begin(self, headers: httpx.Headers) -> None:
        """All of it follows.

        Raises:
            InputTooLarge: by what was announced.
            InputRefused: nothing was announced, so that its end may as well be that of a line
                that broke, and nobody knows its SHA-256.
        """
        self.forget()
        announced = headers.get("content-length", "")
        self.total = int(announced) if re.fullmatch("[0-9]{1,18}", announced) else None
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        if self.total is None and not chunked and not self._provable:
            raise InputRefused(
                f"{self.name} comes without its length, so half of it could pass for the whole: "
                "add its sha256"
            )
        self.etag = _etag(headers)
        self._validator = validator(headers)
        self._check_size(self.total or 0)

    def go_on(self, headers: httpx.Headers) -> None:
        """What is missing follows, and its headers, which fit, say how long the whole is."""
        self.total = int(headers["content-range"].rpartition("/")[2])

    @property
    def resuming(self) -> bool:
        return self.size > 0 and self._validator is not None

    def headers(self) -> dict[str, str]:
        """What to ask with: for all of it, for it if it has changed, or for the rest."""
        headers = {"Accept-Encoding": "identity"}
        if self.resuming and self._validator is not None:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._validator}
        elif self.known_etag is not None:
            headers |= {"If-None-Match": self.known_etag}
        return headers

    async def take(self, data: bytes) -> None:
        """Some more of it. Raises InputTooLarge, InputNotStored, and what `on_bytes` raises."""
        self._check_size(self.size + len(self._unwritten) + len(data))
        self._unwritten += data
        if len(self._unwritten) >= CHUNK:
            await self.flush()

    async def flush(self) -> None:
        """To the disk with what was taken. Even if that is nothing: more may be there, forgotten.

        Raises InputNotStored, and what `on_bytes` raises.
        """
        data = bytes(self._unwritten)
        with disk_errors():
            await asyncio.to_thread(self._write, data)
        self.size += len(data)
        self._unwritten.clear()
        self._tell(len(data))

    def blob(self) -> Blob:
        return Blob(size=self.size, sha256=self._digest.hexdigest(), etag=self.etag)

    def _tell(self, count: int) -> None:
        if self._on_bytes is not None and count:
            self._on_bytes(count)

    def _write(self, data: bytes) -> None:
        write_at(self._part, self.size, data)
        self._digest.update(data)

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_bytes:
            raise InputTooLarge(
                f"{self.name} has {size} bytes or more; at most {self.limits.max_bytes} are fetched"
            )


def _etag(headers: httpx.Headers) -> str | None:
    """The ETag, weak ones included, if it can be sent back."""
    etag = headers.get("etag", "")
    return etag if etag.isascii() and 0 < len(etag) <= _MAX_ETAG else None


def validator(headers: httpx.Headers) -> str | None:
    """By what the server can tell that it still has the same bytes; None if by nothing.

    A strong ETag; or else Last-Modified, if a whole second has passed since: within the second the
    file may have changed again without it.
    """
    etag = _etag(headers)
    if etag is not None and not etag.startswith("W/"):
        return etag
    modified = headers.get("last-modified", "")
    try:
        age = parsedate_to_datetime(headers.get("date", "")) - parsedate_to_datetime(modified)
    except (TypeError, ValueError, OverflowError):  # no date; or only one of them says its zone
        return None
    return modified if age >= timedelta(seconds=1) else None
