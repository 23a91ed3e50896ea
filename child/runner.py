"""The parent's side of a child: start an attempt, hear what it says, end it, judge its end.

Of an attempt the worker starts one process, its guardian (see `child.guardian`), which leads a
session and a process group of its own. The worker holds three pipes to it: orders go down the
control pipe, events come up the event pipe, and what the job prints comes up the log pipe.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from pydantic import JsonValue

from child.environment import child_environment
from child.events import Event, EventReader, JobEnded, JobFailure
from child.forks import Forked, ForkFailed, Template
from child.guardian import adopt_orphans
from child.job_log import JobLog, Redact
from child.pipes import PipeReader, PipeWriter
from child.verdict import (
    Evidence,
    Verdict,
    count_oom_kills,
    judge,
)
from utils import WorkerError

#: What the interpreter runs, with the numbers of two pipes as its arguments.
ENTRY: tuple[str, ...] = ("-m", "jobs")
#: Of the grace of a stop, the share in which the job may end without being signalled.
ASK_SHARE = 0.5
#: After its last word a child has this long to end by itself.
EXIT_SECONDS = 30.0
#: The guardian has this long to end everything. Then the kernel is asked to, group-wide.
KILL_SECONDS: Final = 5.0
#: How long to wait for the pipes' ends when everybody who could hold them is gone.
DRAIN_SECONDS: Final = 5.0
#: Where `jobs` can be imported from.
_ROOT: Final = Path(__file__).resolve().parent.parent


class ChildNotStarted(WorkerError):
    """The operating system refused a new process: no memory, no interpreter, no file handles."""

    code: ClassVar[str] = "child_not_started"
    retryable: ClassVar[bool] = True


class Attempt(NamedTuple):
    """What to run. `params` may hold secrets: they travel over a pipe, never argv, env or disk."""

    process_id: str
    kind: str
    params: dict[str, JsonValue]
    number: int
    #: A folder of this attempt's own.
    folder: Path
    resume_from: Path | None
    #: What the child sees besides the harmless part of the worker's own environment.
    environment: Mapping[str, str]
    device: str = "auto"
    #: Names in its `inputs` of archives, in whose places the job is to find folders.
    unpack: tuple[str, ...] = ()
    #: What all of them together may take on the disk, in bytes.
    max_unpacked_bytes: int = 0
    #: Where kinds keep what they set up once on this machine or volume.
    prepare_dir: Path = Path("prepared")
    #: What the operator has declared about the program to run, for the kind `command`.
    declaration: JsonValue = None


class Child:
    """One running attempt: the job, and everything that it starts.

    `run` follows it to its end and should be awaited once; `stop` and `kill` may be called at
    any time, from other tasks, as often as one likes.
    """

    #: The guardian's process; also the number of the attempt's process group.
    pid: int

    def __init__(self, attempt: Attempt, process: _Process, log: JobLog) -> None:
        self.pid = process.guardian.pid
        self._guardian = process.guardian
        #: What it prints.
        self.log = log
        self._unheard: list[Event] = []
        self._on_event: Callable[[Event], None] = self._unheard.append
        self._final: JobEnded | None = None
        self._listener_error: Exception | None = None
        self._stop_asked = False
        self._ended_by_us = False
        self._lingered = False
        self._oom_kills_before = count_oom_kills()
        self._reader = EventReader(self._hear)
        self._control = PipeWriter(process.control)
        self._events = PipeReader(process.events, self._receive)
        self._output = PipeReader(process.output, self.log.feed)
        self._output.start()
        self._control.send(_first_order(attempt))
        self._gone = asyncio.create_task(self._see_it_gone(process.pidfd))

    @classmethod
    async def spawn(
        cls, attempt: Attempt, redact: Redact = str, *, template: Template | None = None
    ) -> Child:
        """Start `attempt`, whose log is told through `redact`: a fork of `template` if that can.

        Nothing but the fork is awaited in here, so a cancellation cannot leave it half done.

        Raises:
            ChildNotStarted: the operating system refused.
        """
        try:
            adopt_orphans()
            try:
                process = await _start(attempt, template)
            except ForkFailed:
                process = await _start(attempt, None)
            return cls(attempt, process, JobLog(redact))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ChildNotStarted(f"The job's process could not be started: {reason}.") from error

    async def run(self, on_event: Callable[[Event], None]) -> Verdict:
        """Follow the attempt to its end: each event goes to `on_event`, then comes the verdict.

        By then the whole group is reaped and all that was said and printed has been read. What
        `on_event` raises ends the attempt and is raised here. Cancelled, it kills the attempt
        and does not wait; `kill` does.
        """
        # Up to here events stayed in their pipe, or in `_unheard` if the child has gone already.
        for event in self._unheard:
            on_event(event)
        self._on_event = on_event
        self._events.start()
        try:
            exit_code = await asyncio.shield(self._gone)
        except asyncio.CancelledError:
            self._on_event = _ignore
            self._end_by_us()
            self._let_go()
            raise
        if self._listener_error is not None:
            raise self._listener_error
        return judge(self._evidence(exit_code))

    async def stop(self, *, grace_seconds: float) -> None:
        """Ask the job to end; after half the grace send SIGTERM; after all of it, SIGKILL.

        Returns when the whole group is reaped.
        """
        if not self._stop_asked:
            self._stop_asked = True
            self._control.send(b'{"order": "stop"}\n')
        asking = grace_seconds * ASK_SHARE
        if await self._gone_within(asking):
            return
        self._end_by_us()
        self._signal_group(signal.SIGTERM)
        if not await self._gone_within(grace_seconds - asking):
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL all that the attempt started, at once; returns when it is reaped."""
        self._end_by_us()
        self._let_go()
        await asyncio.shield(self._gone)

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines the job printed, each cut at 1000 characters."""
        return self.log.tail(lines)

    def _receive(self, chunk: bytes) -> None:
        if self._listener_error is not None:
            return
        try:
            self._reader.feed(chunk)
        except Exception as error:  # noqa: BLE001 - the listener's; `run` raises it
            self._listener_error = error
            self._let_go()

    def _hear(self, event: Event | JobEnded) -> None:
        if self._final is not None:
            return  # a thread of the job that talks on
        if isinstance(event, JobEnded):
            self._final = event
            self._unless_gone_in(EXIT_SECONDS, self._end_lingering)
        else:
            self._on_event(event)

    def _end_lingering(self) -> None:
        if not self._gone.done():
            self._lingered = True
            self._let_go()

    def _end_by_us(self) -> None:
        """From here on an end without completion is our doing, unless the job failed before."""
        if not isinstance(self._final, JobFailure):
            self._ended_by_us = True

    def _let_go(self) -> None:
        """Have the guardian kill everything; should it not manage to, have the kernel do it."""
        if self._guardian.returncode is None:
            self._control.close()
            os.kill(self.pid, signal.SIGCONT)  # in case somebody has stopped it
            self._unless_gone_in(KILL_SECONDS, lambda: self._signal_group(signal.SIGKILL))

    def _unless_gone_in(self, seconds: float, act: Callable[[], None]) -> None:
        """A timer that still waited would keep all there is of the attempt in memory."""
        timer = asyncio.get_running_loop().call_later(seconds, act)
        self._gone.add_done_callback(lambda _: timer.cancel())

    def _signal_group(self, number: signal.Signals) -> None:
        if self._guardian.returncode is None:  # once reaped, the number may be somebody else's
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def _gone_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self._gone}, timeout=seconds)
        return bool(done)

    async def _see_it_gone(self, pidfd: int) -> int:
        """Wait until nothing of the attempt is left; the exit code, -N when ended by signal N."""
        try:
            await _readable(pidfd)
        except asyncio.CancelledError:  # the loop is closing
            self._let_go()
            raise
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it has
        assert ended is not None
        # Usually the guardian has left nobody. But it may have been killed itself.
        self._signal_group(signal.SIGKILL)
        self._guardian.wait()
        await _reap_group(self.pid)
        self._events.start()
        await asyncio.wait({self._events.ended, self._output.ended}, timeout=DRAIN_SECONDS)
        for pipe in (self._control, self._events, self._output):
            pipe.close()
        self.log.close()
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _evidence(self, exit_code: int) -> Evidence:
        before, after = self._oom_kills_before, count_oom_kills()
        return Evidence(
            exit_code=exit_code,
            final=self._final,
            stop_asked=self._stop_asked,
            ended_by_us=self._ended_by_us,
            lingered=self._lingered,
            oom_kills=after - before if before is not None and after is not None else None,
            log_tail=tuple(self.log_tail()),
        )


class _Process(NamedTuple):
    """A process that was just started, and our ends of its pipes."""

    guardian: subprocess.Popen[bytes] | Forked
    pidfd: int
    control: int
    events: int
    output: int


async def _start(attempt: Attempt, template: Template | None) -> _Process:
    """Raises OSError, and leaves nothing open or running then."""
    environment = child_environment(os.environ, attempt.environment)
    with ExitStack() as ours, ExitStack() as theirs:
        order, control = _pipe(theirs, ours)
        events, event = _pipe(ours, theirs)
        output, printed = _pipe(ours, theirs)
        forked = await template.fork([order, event, printed], environment) if template else None
        guardian = forked or _spawn(order, event, printed, environment)
        ours.callback(guardian.wait)
        ours.callback(guardian.kill)
        pidfd = os.pidfd_open(guardian.pid)
        ours.pop_all()
    return _Process(guardian, pidfd, control, events, output)


def _spawn(
    order: int, event: int, printed: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - nothing in it comes from a caller
        [sys.executable, *ENTRY, str(order), str(event)],
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=printed,
        pass_fds=(order, event),
        start_new_session=True,
    )


def _pipe(reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """A pipe's (read, write) ends, each closed by whom it is for."""
    read, write = os.pipe()
    reads.callback(os.close, read)
    writes.callback(os.close, write)
    return read, write


def _first_order(attempt: Attempt) -> bytes:
    order = {
        "kind": attempt.kind,
        "params": attempt.params,
        "attempt": attempt.number,
        "folder": str(attempt.folder.resolve()),
        "resume_from": str(attempt.resume_from.resolve()) if attempt.resume_from else None,
        "device": attempt.device,
        "unpack": attempt.unpack,
        "max_unpacked_bytes": attempt.max_unpacked_bytes,
        "prepare_dir": str(attempt.prepare_dir.absolute()),
        "declaration": attempt.declaration,
    }
    return json.dumps(order).encode() + b"\n"


async def _readable(pidfd: int) -> None:
    """Until the process has ended; it can be waited for then."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _reap_group(group: int) -> None:
    """Reap what is left of a killed group. Its orphans came to this process, see adopt_orphans."""
    while True:
        with suppress(ChildProcessError):
            os.waitpid(-group, os.WNOHANG)  # noqa: ASYNC222 - does not wait
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.01)


def _ignore(_event: Event) -> None:
    pass
