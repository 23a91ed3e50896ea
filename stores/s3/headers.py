"""What the headers of an answer say: which bytes, which version, how old. Names in lower case.

One rule for all of them: a value that cannot be read is as missing as one that is not there, and
no other value takes its place. Without an ETag, a time of writing or a length the answer is not
S3's, and counts as none (`ResponseParserError`). Without a `Date` only the age is unknown. A row of
a list may lack its ETag, since size and time tell it from others.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from botocore.parsers import ResponseParserError

from storage import ObjectFacts, Stored, age_at
from utils import read_time, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A `Content-Range`: the first byte, the last, and how many there are in all.
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
#: An ETag as stores and proxies write it: weak where a proxy stands between, and quoted or not.
_ETAG = re.compile(r'(?:[Ww]/)?+"*([^"]+)"*')


def version_of(etag: str | None) -> str:
    """Without its quotes: Ceph RGW never finds a quoted one equal in If-Match.

    Raises:
        ResponseParserError: there is none.
    """
    match = _ETAG.fullmatch(etag or "")
    if match is None:
        raise ResponseParserError("the answer has no ETag")
    return match[1]


def byte_range(offset: int, length: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-{offset + length - 1}"}


def length_of(headers: Mapping[str, str]) -> int | None:
    told = headers.get("content-length", "")
    return int(told) if told.isascii() and told.isdecimal() else None


def extent_of(status: int, headers: Mapping[str, str], offset: int, length: int) -> tuple[int, int]:
    """How many bytes come, and how many the object has.

    Raises:
        ResponseParserError: they are not those that were asked for, or the answer does not say.
    """
    size, told = length_of(headers), headers.get("content-range")
    match = _RANGE.fullmatch(told or "")
    if size is None:
        raise ResponseParserError("the answer does not say how many bytes come")
    if match:
        start, last, total = map(int, match.groups())
    elif status == 200 and told is None:
        start, last, total = 0, size - 1, size
    else:
        raise ResponseParserError("it is not said which bytes come")
    if start != offset or last - start + 1 != size or size != min(length, total - offset):
        raise ResponseParserError("other bytes come than those asked for")
    return size, total


def stored_of(data: bytes, headers: Mapping[str, str]) -> Stored:
    """An object that came whole.

    Raises:
        ResponseParserError: it may be half of it, or has no version or no time of writing.
    """
    # The end of a connection would end a body that has neither a length nor chunks.
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    if length_of(headers) is None and not chunked:
        raise ResponseParserError("the answer does not say where the object ends")
    modified = modified_at(headers)
    return Stored(data, version_of(headers.get("etag")), modified, age_of(modified, headers))


def still(cached: Stored, headers: Mapping[str, str]) -> Stored:
    """`cached`, its age made new by a 304, which may leave out when it was written: Ceph RGW's do.

    The same bytes may have been written anew since. If the 304 has `Last-Modified`, that time is
    used.
    """
    told = read_time(headers.get("last-modified", ""))
    modified = told.timestamp() if told else cached.modified
    return cached._replace(modified=modified, age_seconds=age_of(modified, headers))


def facts_of(headers: Mapping[str, str]) -> ObjectFacts:
    """Of an answer to HEAD.

    Raises:
        ResponseParserError: a length, a version or a time of writing is missing.
    """
    size = length_of(headers)
    if size is None:
        raise ResponseParserError("the answer does not say how large the object is")
    return ObjectFacts(size, version_of(headers.get("etag")), modified_at(headers))


def modified_at(headers: Mapping[str, str]) -> float:
    """Raises ResponseParserError if the answer does not say."""
    return parse_time(headers.get("last-modified", "")).timestamp()


def age_of(modified: float, headers: Mapping[str, str]) -> float | None:
    """Seconds since `modified`, by the clock of the store alone; None if it did not tell it."""
    now = read_time(headers.get("date", ""))
    return age_at(now.timestamp() if now else None, modified)


def offset_from(headers: Mapping[str, str]) -> float | None:
    """Our clock minus the store's by its `Date` header, in seconds; None if it has none."""
    theirs = read_time(headers.get("date", ""))
    return (utc_now() - theirs).total_seconds() if theirs else None


def parse_time(text: str) -> datetime:
    """Of a header or a list.

    Raises:
        ResponseParserError: it is no time.
    """
    told = read_time(text)
    if told is None:
        raise ResponseParserError("no time")
    return told
