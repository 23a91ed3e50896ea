"""Writers that are killed at random instants, run as `python -m tests.crash_writer ROOT KILLS`.

A process of its own because it forks, which is only safe where there are no threads. Exits with
an assertion when a kill left anything but the last acknowledged object or the one after it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stores.local.store import LocalStore

if TYPE_CHECKING:
    from storage import Stored

#: Large enough that a write takes several steps.
SIZE = 300_000


def content(number: int) -> bytes:
    """Of one length, and different in every place from that of the next number."""
    return (b"%08d" % number) * (SIZE // 8)


def number_in(data: bytes) -> int:
    """The number; an assertion if these are not all of its bytes."""
    number = int(data[:8])
    assert data == content(number), "a kill left half an object"
    return number


async def write_for_ever(root: Path, number: int, acknowledge: int) -> None:
    """Put, replace and upload the next numbers, and acknowledge each once it is written."""
    store, source = LocalStore(root), root.parent / "source"
    version = await store.put("a/object", content(number))
    while True:
        os.write(acknowledge, b"%08d" % number)
        number += 1
        if number % 2:
            version = await store.replace("a/object", content(number), version)
        else:
            source.write_bytes(content(number))
            with source.open("rb") as file:
                await store.upload(file, "a/object")
            version = (await store.get("a/object")).version


def write_and_be_killed(root: Path, number: int) -> int:
    """A child starts from `number` and is killed. Returns what it acknowledged last."""
    acknowledged, acknowledge = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(write_for_ever(root, number, acknowledge))
        finally:
            os._exit(1)
    os.close(acknowledge)
    said = os.read(acknowledged, 8)  # it is at work now
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.03))  # noqa: S311
    while more := os.read(acknowledged, 1 << 16):  # until its death closes the pipe
        said = more
    os.close(acknowledged)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer failed before it was killed"
    return int(said[-8:])


async def read(root: Path) -> Stored:
    store = LocalStore(root)
    stored = await store.get("a/object")
    assert [row.key for row in (await store.list("")).objects] == ["a/object"]
    await store.close()
    return stored


def main(root: Path, kills: int) -> None:
    number = 0
    for _ in range(kills):
        acknowledged = write_and_be_killed(root, number)
        found = number_in(asyncio.run(read(root)).data)
        assert found in (acknowledged, acknowledged + 1), f"{acknowledged} said, {found} there"
        number = found + 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
