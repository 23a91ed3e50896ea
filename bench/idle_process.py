"""When the machine itself stood still: seen by a process that has nothing to do but to sleep.

    python -m bench.idle_process CORE       a line of two times for each sleep that was too long

Containers and virtual machines are stopped for some milliseconds when they have used up what they
may, or a core of theirs is; no program in them is told.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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


def stood_still(machine: Sequence[Oversleep], asked: float, came: float) -> float:
    """For how many of the seconds between these two times a core did not run, whichever it was."""
    seconds, seen = 0.0, asked
    for each in sorted(machine):
        seconds += max(0.0, min(each.came, came) - max(each.asked, seen))
        seen = max(seen, each.came)
    return seconds


@contextmanager
def idle_processes(folder: Path) -> Iterator[Callable[[], list[Oversleep]]]:
    """Have one on each core until the block ends. Says how they have overslept so far."""
    with ExitStack() as running:
        told = [
            running.enter_context(_idle_process(core, folder)) for core in os.sched_getaffinity(0)
        ]
        yield lambda: [
            Oversleep(*map(float, line.split()))
            for file in told
            for line in file.read_text().splitlines()
        ]


@contextmanager
def _idle_process(core: int, folder: Path) -> Iterator[Path]:
    told = folder / f"idle-on-{core}"
    with told.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.idle_process", str(core)], stdout=out
        )
    try:
        while not told.stat().st_size:
            if process.poll() is not None:
                raise RuntimeError(
                    f"no idle process on core {core}: exit code {process.returncode}"
                )
            time.sleep(TICK)
        yield told
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
    os.sched_setaffinity(0, map(int, sys.argv[1:]))
    with suppress(PermissionError):  # where only root may; then a busy core hides some of it
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with waits_for_a_core() as waited:
        awake, waits = time.monotonic(), waited()
        print(awake, awake, flush=True)
        while os.getppid() == parent:
            time.sleep(TICK)
            # From one time awake to the next, so that it may be stopped anywhere in between.
            asked, waits_before = awake + TICK, waits
            awake, waits = time.monotonic(), waited()
            came = awake - (waits - waits_before)
            if came - asked > _USUAL:
                print(asked, came, flush=True)


if __name__ == "__main__":
    main()
