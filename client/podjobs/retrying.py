"""When a failed HTTP request is sent again, and after how long."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Tries of one request before it counts as failed: about two minutes in all.
TRIES = 8
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
#: No server makes a client wait longer than this between two tries.
LONGEST_ASKED = 120.0
#: Answers that another try may change: too many requests, and the server's own faults.
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


class NoAnswer(Exception):
    """Every try failed; the text says how the last one did."""


async def answered(once: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The first answer of `once` that is not temporary.

    Raises:
        NoAnswer: the network or the server failed TRIES times.
    """
    problem = ""
    for attempt in range(TRIES):
        response = None
        try:
            response = await once()
        except httpx.TransportError as error:
            problem = str(error) or type(error).__name__
        else:
            if response.status_code not in TEMPORARY:
                return response
            problem = f"HTTP {response.status_code}"
        if attempt + 1 < TRIES:
            await asyncio.sleep(delay_after(attempt, response))
    raise NoAnswer(f"{problem}, {TRIES} tries")


def delay_after(attempt: int, response: httpx.Response | None = None) -> float:
    """Seconds to wait after try `attempt`, counted from 0.

    The server's Retry-After wins. Otherwise the delay doubles, and a random half of it spreads the
    tries of many clients.
    """
    asked = _retry_after(response) if response is not None else None
    if asked is not None:
        return min(max(asked, 0.0), LONGEST_ASKED)
    longest: float = min(FIRST_DELAY * 2**attempt, LONGEST_DELAY)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the header Retry-After asks for; a date is read by the server's own clock."""
    value: str = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    when = _timestamp(value)
    if when is None:
        return None
    now = _timestamp(response.headers.get("Date", ""))
    return when - (time.time() if now is None else now)


def _timestamp(http_date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(http_date).timestamp()
    except (TypeError, ValueError):
        return None
