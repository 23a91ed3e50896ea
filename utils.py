"""Leaves: the error base, values, ids, time, waiting. Imports nothing of ours."""

from __future__ import annotations

import asyncio
import difflib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, JsonValue, StringConstraints

T = TypeVar("T")
Clock = Callable[[], datetime]
#: Two changes of files that are so far apart get different times: a file system's clock may tick as
#: rarely as every 10 ms.
CLOCK_TICK_SECONDS = 0.05
#: Lower-case hex.
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: Keys of the worker itself: what lies there is reached by the actions, or by nobody.
OWN_PREFIXES = ("processes/", "index/", "inputs/", "workers/", "locks/", "ages/")


class WorkerError(Exception):
    """An error a caller may see. `code` is part of the wire contract and never changes."""

    code: ClassVar[str] = "internal_error"
    #: Whether the very same request may succeed later.
    retryable: ClassVar[bool] = False

    def payload(self) -> dict[str, JsonValue]:
        """What the caller gets: `{"code", "message", "retryable"}`."""
        return {"code": self.code, "message": str(self), "retryable": self.retryable}


class Frozen(BaseModel, frozen=True, extra="forbid"):
    """A value. Changing one means making the next one."""


def new_id() -> str:
    """A fresh process id: sortable by time, 26 characters of `[0-9a-z-]`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(5)}"


def new_nonce() -> str:
    """What no one else will come up with: 16 hex digits."""
    return secrets.token_hex(8)


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` is set by then; returns as soon as it is."""
    # Not `wait_for`: in Python 3.11 it may lose a cancellation that comes as the event is set.
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises the first failure itself, as it was, not a group around it."""
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    if first is not None:
        try:
            raise first
        finally:
            del first  # or it would lead to itself, and hold what its frames hold


def did_you_mean(
    name: str, known: Iterable[str], *, written: str = "`{}`", cutoff: float = 0.6
) -> str:
    """`; did you mean ...?` with the nearest of the `known` names, as `written`; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {written.format(near[0])}?" if near else ""


def day_of(moment: datetime) -> str:
    """The day of an aware `moment`, by UTC, such that days sort as they follow each other."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


async def side_by_side(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of these calls, in order. If one fails, the others are stopped."""
    async with together() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


class Stopwatch:
    """Tells how long ago it was made, also if this machine was frozen meanwhile."""

    def __init__(self) -> None:
        self._began, self._began_by_wall = time.monotonic(), time.time()

    def seconds(self) -> float:
        """By the clock that went further: one of them may not count a freeze."""
        return max(time.monotonic() - self._began, abs(time.time() - self._began_by_wall))


def read_time(text: str) -> datetime | None:
    """The aware time that `text` says, an HTTP date or ISO 8601; None if it says none.

    Without a zone it is UTC. A program that does not know a time may send 0, which reads as 1970:
    the epoch and all before it are no times.
    """
    try:
        try:
            told = datetime.fromisoformat(text)
        except ValueError:
            told = parsedate_to_datetime(text)
        told = told.replace(tzinfo=told.tzinfo or UTC)
        return told if told.timestamp() > 0 else None
    except (ValueError, OverflowError):
        return None


def timestamp(at: datetime) -> str:
    """A time as every reply shows it: RFC 3339, UTC, milliseconds (`2026-12-01T10:00:00.000Z`)."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def utc_now() -> datetime:
    """Now, aware. Every time this worker writes down is UTC and says so."""
    return datetime.now(UTC)
