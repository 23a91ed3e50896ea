"""Progress shown while a start is held: on RunPod's /status, or at a terminal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from records.replies import Reply
from utils import WorkerError, set_within

log = logging.getLogger(__name__)

#: RunPod's own /status shows progress at most this often.
UPDATE_SECONDS = 2.0
#: How long the last update may take once the process has ended.
LAST_UPDATE_SECONDS = 5.0

#: Returns the view of the process as it is now.
Look = Callable[[], Awaitable[Reply]]
#: Shows what `Look` returns, over and over, until the event is set.
Show = Callable[[Look, asyncio.Event], Coroutine[Any, Any, None]]


async def show_nothing(_look: Look, _done: asyncio.Event) -> None:
    """Show no progress: the local API server has no way to."""


@asynccontextmanager
async def progress_shown(show: Show, look: Look) -> AsyncIterator[None]:
    """Show progress until this is left; the last update arrives before the reply."""
    done = asyncio.Event()
    shown = asyncio.create_task(show(look, done))
    try:
        yield
    finally:
        done.set()
        await asyncio.wait([shown], timeout=LAST_UPDATE_SECONDS)
        shown.cancel()


async def send_updates(
    send: Callable[[Reply], Awaitable[object]], look: Look, done: asyncio.Event
) -> None:
    """Send views in order, one at a time, at most one per `UPDATE_SECONDS`, until `done`."""
    last: Reply = {}
    while not await set_within(done, UPDATE_SECONDS):
        try:
            seen = await look()
            news = {name: seen[name] for name in ("status", "progress", "attempt", "artifacts")}
            if news != last and not done.is_set():
                await send(seen)
                last = news
        except (WorkerError, OSError, TimeoutError) as error:
            log.warning("a progress update was not sent: %r", error)
