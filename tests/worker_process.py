"""Real worker processes for tests: started, killed, frozen, and cleaned up without leftovers.

A worker is a tree of processes: the SDK's loop, the SDK's ping process in the same process group,
and the worker's own children, each in a session of its own. `reaper.py` stands above the tree.
Signals go to pids and groups that this module started, never to names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.control_plane import ControlPlane

ROOT = Path(__file__).resolve().parent.parent
REAPER = Path(__file__).with_name("reaper.py")
#: A developer's own settings must not reach the worker under test.
FOREIGN = ("RUNPOD_", "WORKER_", "S3_", "AWS_", "BUCKET_")
TAIL_CHARACTERS = 8000


async def eventually(
    condition: Callable[[], object], why: str = "", seconds: float = PATIENCE
) -> None:
    """Wait for a condition of the outside world, which nothing announces: a process, a file."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {why}")
        await asyncio.sleep(0.02)


class Worker:
    """`async with Worker(plane, script, tmp_path) as worker:`; all of it ends with the block.

    `freeze`, `kill` and `clean_up` block for the milliseconds that the kernel needs.
    """

    def __init__(
        self,
        plane: ControlPlane,
        script: str | Path,
        folder: Path,
        worker_id: str = "w1",
        env: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.id = worker_id
        self.plane = plane
        self.command = [sys.executable, str(ROOT / script), *arguments]
        self.log = folder / f"{worker_id}.{time.monotonic_ns()}.log"
        own = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        self.env = own | {"PYTHONUNBUFFERED": "1"} | plane.worker_env(worker_id) | (env or {})
        self._exit_status: int | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        sys.stderr.write(f"{self.story()}\n")  # pytest shows it when the test has failed
        self.clean_up()

    def start(self) -> None:
        """Start the script as the leader of its own session and group."""
        self._takes_before = self.plane.seen(self.id).takes
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(REAPER), str(self.log), *self.command],
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for us; it gets to know by the pipe
        )
        assert self._reaper.stdout is not None
        self.pid = int(self._reaper.stdout.readline())
        self._main = psutil.Process(self.pid)

    # -- looking ---------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Does the main process live?"""
        return _alive(self._main)

    @property
    def exit_status(self) -> int | None:
        """The main process's, negative for a signal; None while it runs."""
        if self._exit_status is None and not self.running:
            assert self._reaper.stdout is not None
            self._exit_status = int(self._reaper.stdout.readline().removeprefix("exit "))
        return self._exit_status

    def output(self) -> str:
        """All it has printed."""
        return self.log.read_text(errors="replace")

    def story(self) -> str:
        """The end of its output, for the reader of a failed assertion."""
        state = "running" if self.running else f"exit status {self.exit_status}"
        return f"--- worker {self.id} (pid {self.pid}, {state})\n{self.output()[-TAIL_CHARACTERS:]}"

    def descendants(self) -> list[psutil.Process]:
        """All living processes of this worker, the main one included, and also after its death.

        Reading the tree is not atomic: an orphan on its way to the reaper is missed. It is under
        the reaper the next time, so the tree is read until two readings agree.
        """
        family, again = self._family(), self._family()
        while family != again:
            family, again = again, self._family()
        return sorted(filter(_alive, family), key=lambda process: process.pid)

    def _family(self) -> set[psutil.Process]:
        try:
            return set(psutil.Process(self._reaper.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return set()

    def group(self) -> list[psutil.Process]:
        """The living members of its own session: the SDK's loop and its ping process."""
        return [p for p in self.descendants() if _session(p) == self.pid]

    def children(self) -> list[psutil.Process]:
        """Its living processes in other sessions: what it runs jobs in."""
        return [p for p in self.descendants() if _session(p) not in (None, self.pid)]

    # -- waiting ---------------------------------------------------------------------------------

    async def wait_ready(self, seconds: float = PATIENCE) -> Self:
        """Until the control plane has seen the first job-take of this start."""
        seen = self.plane.seen(self.id)
        await eventually(
            lambda: seen.takes > self._takes_before or not self.running,
            f"{self.id} took jobs",
            seconds,
        )
        assert self.running, f"the worker ended before it was ready\n{self.story()}"
        return self

    async def exited(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once it has ended."""
        await eventually(lambda: not self.running, f"{self.id} ended", seconds)
        assert self.exit_status is not None
        return self.exit_status

    # -- acting ----------------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM to the main process alone, as a container's runtime does."""
        self._main.terminate()

    def freeze(self, *, children: bool = False) -> None:
        """SIGSTOP the group; with `children` the whole tree, as FlashBoot does.

        Returns once they stand still: a signal sent is not yet a signal that has struck.
        """
        frozen = self.descendants() if children else self.group()
        for process in frozen:
            _send(process, signal.SIGSTOP)
        _wait(lambda: not any(map(_moves, frozen)), f"{self.id} frozen")

    def thaw(self) -> None:
        """SIGCONT to all that `freeze` may have stopped."""
        for process in self.descendants():
            _send(process, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the whole group, the SDK's ping process included; other sessions live on."""
        # Asked of the kernel, not read from /proc: until there is no such group, not even zombies.
        _wait(lambda: not _signal_group(self.pid, signal.SIGKILL), f"{self.id} killed")

    def clean_up(self) -> None:
        """Kill it and everything it ever started; returns when nothing of it is left."""
        assert self._reaper.stdin is not None
        assert self._reaper.stdout is not None
        self._reaper.stdin.close()
        self._reaper.wait(timeout=PATIENCE)
        self._reaper.stdout.close()


def _wait(condition: Callable[[], bool], why: str) -> None:
    """For what the kernel does at once, but not at the very instant."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.001)


def _signal_group(group: int, number: int) -> bool:
    """Was there anybody to signal?"""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _alive(process: psutil.Process) -> bool:
    """A zombie is dead: it only waits for whoever inherited it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _moves(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def _send(process: psutil.Process, number: int) -> None:
    """By psutil, which refuses when the pid has been given to another process."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
