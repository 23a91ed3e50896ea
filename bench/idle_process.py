"""When the machine itself stood still: seen by a process that has nothing to do but to sleep.

    python -m bench.idle_process            a line of two times for each sleep that was too long

Containers and virtual machines are stopped for some milliseconds when they have used up what they
may, and no program in them is told.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

#: Seconds of one sleep.
TICK = 0.001
#: Seconds by which a sleep is too long often; it matters to no goal.
_USUAL = 0.002


class Oversleep(NamedTuple):
    """When a process should have woken and when it could have, seconds of `time.monotonic`."""

    asked: float
    came: float

    def within(self, asked: float, came: float) -> float:
        """The seconds of it that lie between these two times."""
        return max(0.0, min(self.came, came) - max(self.asked, asked))


@contextmanager
def idle_process(folder: Path) -> Iterator[Callable[[], list[Oversleep]]]:
    """Have one until the block ends. Says how it has overslept so far."""
    told = folder / "idle-process"
    with told.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "bench.idle_process"], stdout=out)
    try:
        yield lambda: [
            Oversleep(*map(float, line.split())) for line in told.read_text().splitlines()
        ]
    finally:
        process.kill()
        process.wait()


@contextmanager
def waits_for_a_core() -> Iterator[Callable[[], float]]:
    """Says for how many seconds this thread was ready and had no core, so far (Linux, `schedstat`).

    By C's `pread` and with Python's lock held: `os.pread` gives it away, and what it takes to get
    it back would be measured as the loop's.
    """
    pread, text = ctypes.PyDLL(None, use_errno=True).pread, ctypes.create_string_buffer(128)
    pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
    pread.restype = ctypes.c_ssize_t
    with Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").open("rb") as file:

        def waited() -> float:
            if pread(file.fileno(), text, len(text) - 1, 0) <= 0:
                raise OSError(ctypes.get_errno(), f"{file.name} could not be read")
            return int(text.value.split()[1]) / 1e9

        yield waited


def main() -> None:
    """Until whoever started it is gone."""
    parent = os.getppid()
    with waits_for_a_core() as waited:
        while os.getppid() == parent:
            asked, waited_before = time.monotonic() + TICK, waited()
            time.sleep(TICK)
            came = time.monotonic() - (waited() - waited_before)
            if came - asked > _USUAL:
                print(asked, came, flush=True)


if __name__ == "__main__":
    main()
