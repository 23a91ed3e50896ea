"""When the machine itself stood still: seen by processes that have nothing to do but to sleep.

    python -m bench.idle_process CORE       until its input ends; then two times for each sleep
                                            that was too long

Containers and virtual machines are stopped for some milliseconds when they have used up what they
may, or a core of theirs is; no program in them is told.
"""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

#: Seconds of one sleep: the longer, the less it disturbs, and the later it sees a stop.
SLEEP = 0.005
#: Seconds by which a sleep is too long often; it matters to no goal.
USUAL = 0.002


class Oversleep(NamedTuple):
    """When a process should have woken and when it could have, seconds of `time.monotonic`."""

    asked: float
    came: float


class Machine(NamedTuple):
    """How each core overslept, in the order of time."""

    cores: Sequence[Sequence[Oversleep]]

    def a_core_stood_still(self, asked: float, came: float) -> float:
        """For how many of the seconds between these two times at least one did.

        It may have been another than the one that mattered, so this is rather too much.
        """
        return _overlap(sorted(each for core in self.cores for each in core), asked, came)

    def every_core_stood_still(self, asked: float, came: float) -> float:
        """For how many seconds, at most, none ran: rather too little, for a thread that waits for
        another one waits for that one's core."""
        return min(_overlap(core, asked, came) for core in self.cores)


def _overlap(sleeps: Sequence[Oversleep], asked: float, came: float) -> float:
    seconds, seen = 0.0, asked
    for each in sleeps:
        seconds += max(0.0, min(each.came, came) - max(each.asked, seen))
        seen = max(seen, each.came)
    return seconds


@contextmanager
def idle_processes() -> Iterator[Callable[[], Machine]]:
    """Have one on each core. The first call ends them and says what they have seen."""
    with ExitStack() as running:
        cores = sorted(os.sched_getaffinity(0))
        processes = [running.enter_context(_idle_process(core)) for core in cores]
        yield lambda: Machine([_ended(process) for process in processes])


@contextmanager
def _idle_process(core: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.idle_process", str(core)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,  # an interrupt is for whoever started it
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"there is no idle process on core {core}")
            yield process
        finally:
            process.kill()


def _ended(process: subprocess.Popen[str]) -> list[Oversleep]:
    told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"an idle process broke: exit code {process.returncode}")
    return [Oversleep(*map(float, line.split())) for line in told.splitlines()]


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
    """Until standard input ends, as it does with whoever started it; all is told then: a write
    could wait for a disk."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    seen: list[Oversleep] = []
    with waits_for_a_core() as waited:
        awake, waits = time.monotonic(), waited()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], SLEEP)[0]:
            # From one time awake to the next, so that it may be stopped anywhere in between.
            asked, waits_before = awake + SLEEP, waits
            awake, waits = time.monotonic(), waited()
            came = awake - (waits - waits_before)
            if came - asked > USUAL:
                seen.append(Oversleep(asked, came))
    for asked, came in seen:
        print(asked, came)


if __name__ == "__main__":
    main()
