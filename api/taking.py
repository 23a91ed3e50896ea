"""Keeps rows that RunPod's SDK cannot handle away from its loop.

One row without a usable `id` ends the SDK's loop (1.12.0), and with it every process that runs on
this worker. Other rows lose the rest of their batch, or stop the SDK from taking jobs for a while.
`tests/test_taking.py` says when the SDK copes by itself: then remove this module.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

log = logging.getLogger(__name__)

#: The SDK sends the id in a header of every later request; servers refuse longer headers.
MAX_ID_LENGTH = 256

Job = dict[str, Any]


class Session(Protocol):
    """The part of aiohttp's session that the SDK's fetch uses."""

    def get(self, url: str) -> AbstractAsyncContextManager[Any]:
        """Send a GET."""


class Fetch(Protocol):
    """The SDK's `get_job`."""

    def __call__(self, session: Session, num_jobs: int = 1) -> Awaitable[list[Job] | None]:
        """Ask RunPod for up to `num_jobs` jobs."""


def guarded(fetch: Fetch) -> Fetch:
    """`fetch`, whose answers hold only jobs that the SDK can handle."""

    def guarded_fetch(session: Session, num_jobs: int = 1) -> Awaitable[list[Job] | None]:
        return fetch(_GuardedSession(session), num_jobs)

    return guarded_fetch


class _GuardedSession:
    """A session whose JSON is checked before the SDK sees it.

    The check stands here because the SDK drops a single job without `input`, and names no id: its
    caller would wait until the job times out. In a list the SDK passes it on to the handler.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[Any]:
        async with self._session.get(url) as response:
            response.json = _checked(response.json)
            yield response


def _checked(read: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    async def read_checked() -> object:
        answer = await read()
        rows = [answer] if isinstance(answer, dict) else answer
        return usable_jobs(rows) if isinstance(rows, list) else None

    return read_checked


def usable_jobs(rows: list[Any]) -> list[Job]:
    """The jobs among `rows`, without fields that the SDK cannot keep.

    A row without a usable `id` cannot even be answered: it is logged and left out.
    """
    jobs = [_without_reserved(row) for row in rows if _has_usable_id(row)]
    if left_out := len(rows) - len(jobs):
        log.error("RunPod handed out %d rows without a usable `id`; they are left out", left_out)
    return jobs


def _has_usable_id(row: object) -> bool:
    """With a line break in its id, the SDK takes no jobs until it has answered another one."""
    job_id = row.get("id") if isinstance(row, dict) else None
    return isinstance(job_id, str) and 0 < len(job_id) <= MAX_ID_LENGTH and job_id.isprintable()


def _without_reserved(row: Job) -> Job:
    """The SDK makes every field an argument, then an attribute, of an object of its own."""
    return {name: each for name, each in row.items() if name != "self" and name[:2] != "__"}
