"""What the headers of an answer say: which bytes, which version, how old. Names in lower case."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from utils import utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stores.s3_connections import Head

#: A `Content-Range`: the first byte, the last, and how many there are in all.
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def version_of(etag: str) -> str:
    """Without its quotes: Ceph RGW never finds a quoted one equal in If-Match."""
    return etag.strip('"')


def byte_range(offset: int, length: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-{offset + length - 1}"}


def extent_of(head: Head, offset: int, length: int) -> tuple[int, int]:
    """Bytes that come, and in all.

    Raises:
        ResponseParserError: they are not those that were asked for.
    """
    size, told = int(head.headers["content-length"]), head.headers.get("content-range")
    match = _RANGE.fullmatch(told or "")
    if match:
        start, last, total = map(int, match.groups())
    elif head.status == 200 and told is None:
        start, last, total = 0, size - 1, size
    else:
        raise ResponseParserError("it is not said which bytes come")
    if start != offset or last - start + 1 != size or size != min(length, total - offset):
        raise ResponseParserError("other bytes come than those asked for")
    return size, total


def modified_at(headers: Mapping[str, str]) -> float:
    """Raises ResponseParserError if it is no time."""
    told = headers.get("last-modified", "")
    try:
        try:
            return aware(parsedate_to_datetime(told)).timestamp()
        except ValueError:
            return aware(parse_time(told)).timestamp()
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ResponseParserError("no time") from error


def age_of(modified: float, headers: Mapping[str, str]) -> float:
    """Seconds since `modified`, by the clock of the store alone."""
    offset = offset_from(headers) or 0.0
    now: datetime = utc_now()
    return max(0.0, now.timestamp() - offset - modified)


def aware(told: datetime) -> datetime:
    """A header's time that names no zone (`-0000`) is UTC, as all of HTTP's are."""
    return told if told.tzinfo else told.replace(tzinfo=UTC)


def offset_from(headers: Mapping[str, str]) -> float | None:
    """Our clock minus the store's by its `Date` header, in seconds; None if it has none."""
    try:
        theirs = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError):
        return None
    return (utc_now() - aware(theirs)).total_seconds()


def parse_time(text: str) -> datetime:
    """What lists say (ISO 8601) is read at once, and what headers say as botocore reads it."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return parse_timestamp(text)
