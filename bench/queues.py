"""Celery and SAQ, on a Redis: started for real, and ended with whoever started them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from celery import Celery
from saq import Queue
from saq.queue import JobError

from bench.dispatches import Calling, calling, calling_in
from tests.servers import _free_ports
from tests.worker_process import REAPER, ROOT

REDIS = ROOT / "scripts" / "redis.sh"
#: Everything that changes goes to a file, which is forced to the disk once a second.
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")
#: Seconds. Nothing that is measured here takes nearly so long.
PATIENCE = 30
#: A job of SAQ that is aborted is sent again, so often.
TIMES = 5
#: `apply` looks for the result this often. SAQ's default is 0.5; its `refresh`, which is told,
#: waits for ever for a job that ends before it listens.
POLL_SECONDS = 0.005


@contextmanager
def redis_server(*options: str) -> Iterator[str]:
    """Its URL."""
    process = subprocess.Popen(
        [REDIS, "run", str(_free_ports(1)), *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,  # Ctrl-C is for us; it gets to know by the pipe
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin:
        url = process.stdout.readline().strip().removeprefix("url=")
        if not url:
            raise RuntimeError("Redis did not start, see above")
        yield url


@contextmanager
def background(log: Path, *command: str, **env: str) -> Iterator[None]:
    """A Python program with all that it starts, until the block ends, or we do."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(REAPER), str(log), sys.executable, *command],
        env=os.environ | env, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    with process, process.stdin:
        yield


@contextmanager
def celery(url: str, pool: str, folder: Path, most_callers: int) -> Iterator[Calling]:
    """Callers of a worker as `celery worker` starts it, but for its pool."""
    # One queue for each, so that those that share a Redis share nothing else.
    app = Celery("noop", broker=url, backend=url)
    app.conf.task_default_queue = pool

    def one() -> None:
        assert app.send_task("bench.celery_noop.noop").get(timeout=PATIENCE) == {}

    command = ["-m", "celery", "-A", "bench.celery_noop", "worker", "--pool", pool, "-Q", pool]
    log = folder / f"celery-{pool}.log"
    # Each thread has connections of its own, which Celery keeps for it.
    with (
        ThreadPoolExecutor(most_callers) as threads,
        background(log, *command, "--loglevel", "WARNING", BENCH_REDIS=url),
    ):
        yield calling_in(threads, one)


@asynccontextmanager
async def saq(url: str, folder: Path) -> AsyncIterator[Calling]:
    """Callers of a worker as `saq` starts it."""
    queue = Queue.from_url(url)

    async def one() -> None:
        # Its sweep (at the start, and each minute) aborts what a worker is just taking.
        for _ in range(TIMES):
            with suppress(JobError):
                await queue.apply("noop", timeout=PATIENCE, poll_interval=POLL_SECONDS)
                return
        raise RuntimeError(f"SAQ aborted a job {TIMES} times")

    async def first() -> None:
        # What is sent while its worker starts may be lost: no worker ever takes it.
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(JobError, TimeoutError):
                    await queue.apply("noop", timeout=1, poll_interval=POLL_SECONDS)
                    return

    command = ["-m", "saq", "bench.saq_noop.settings", "--quiet"]
    with background(folder / "saq.log", *command, BENCH_REDIS=url):
        await queue.connect()
        try:
            await first()
            yield calling(one)
        finally:
            await queue.disconnect()
