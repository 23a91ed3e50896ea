"""Blocking calls off the event loop: bounded in number and in time, repeated when told to."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from storage import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from stores.s3.stopping import Stop

#: Seconds. How long a cancelled task waits for its thread.
STOPPING = 2.0

T = TypeVar("T")


class Lane:
    """Threads for one purpose, so that a thousand reads never keep a heartbeat waiting."""

    def __init__(self, name: str, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(threads)

    async def run(self, call: Callable[[], T], *, seconds: float | None = None) -> T:
        """What `call` returns. When the wait is over or cancelled, its thread may still go on.

        Raises:
            StorageUnavailable: it took longer than `seconds`, the wait for a thread not counted.
                boto3's own time-outs do not cover DNS, nor an answer that trickles.
        """
        async with self._free:
            try:
                async with asyncio.timeout(seconds):
                    return await asyncio.get_running_loop().run_in_executor(self._threads, call)
            except TimeoutError:
                if seconds is None:  # a disk's own, over a network
                    raise
                raise StorageUnavailable(f"the store did not answer within {seconds:g} s") from None

    async def run_to_end(self, call: Callable[[], T], stop: Stop) -> T:
        """What `call` returns. When cancelled, sets `stop` and waits until the call has ended, so
        that nothing still uses a file whose owner believes it to be free; but not for ever."""
        async with self._free:
            work = asyncio.get_running_loop().run_in_executor(self._threads, call)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()
                work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.wait({work}, timeout=STOPPING)
                raise
            finally:
                del work  # what it raised leads to this frame, and would to itself

    def close(self) -> None:
        """Take no more calls. Does not wait for those that are running."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def backoff(seconds: float) -> Iterator[float]:
    """Waits before each next try: exponential, full jitter, `seconds` from now in all."""
    end = time.monotonic() + seconds
    ceiling = 0.1
    while True:
        delay = random.uniform(0.0, ceiling)  # noqa: S311  # jitter keeps no secret
        if time.monotonic() + delay > end:
            return
        yield delay
        ceiling = min(2 * ceiling, 2.0)


async def retrying(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What `call` returns, tried anew while the store is unavailable and for at most `seconds`."""
    delays = backoff(seconds)
    while True:
        try:
            return await call()
        except StorageUnavailable:
            delay = next(delays, None)
            if delay is None:
                raise
            await asyncio.sleep(delay)


def patiently(call: Callable[[], T], seconds: float) -> T:
    """As `retrying`, in the caller's own thread."""
    delays = backoff(seconds)
    while True:
        try:
            return call()
        except StorageUnavailable:
            delay = next(delays, None)
            if delay is None:
                raise
            time.sleep(delay)
