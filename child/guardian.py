"""The init of one attempt: a small process above the job, so that nothing outlives an attempt.

    worker ── guardian ── job ── whatever the job starts

The worker starts one process, which forks at once: the lower half becomes the job, the upper
half stays behind as its guardian. Linux gives every orphan below it to the guardian, daemons in
sessions of their own included. The guardian ends everything when the job has ended, or when the
worker lets go of the control pipe, be it on purpose or because it was killed. Then it ends the
way the job did. So, seen from the worker: when the guardian is gone, everything is.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Let orphaned processes below this one become its own children, to be reaped here."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have this process killed when `parent`, by which it was begun, dies; at once if it has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def guard(control: int, events: int) -> None:
    """Fork, and return in the lower half only, which is to become the job.

    `control` is where the worker's orders arrive: its end means that all shall end.
    """
    worker = os.getppid()
    adopt_orphans()
    # Sent when the worker dies: it wakes this process even if somebody has stopped it. (Also when
    # only the worker's thread that started it dies, hence the look at who the parent is.)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    # These are sent to the group, for the job. Ctrl-C is for the worker alone.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guardian = os.getpid()
    job = os.fork()
    if job == 0:
        die_with_parent(guardian)
        with suppress(OSError):  # if memory runs out, rather the job than the worker
            Path("/proc/self/oom_score_adj").write_text("500")
        return
    os.close(events)
    status = _wait_for_end(job, control, worker)
    last = _end_everything()
    _end_like(last[job] if status is None else status)


def _wait_for_end(job: int, control: int, worker: int) -> int | None:
    """Reap orphans until the job ends: its wait status, or None when the worker let go first.

    A dead worker has not always let go: a process it forked may still hold the pipe.
    """
    awake, wake = os.pipe()
    os.set_blocking(awake, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGCONT):
        signal.signal(number, lambda *_: None)
    poller = select.poll()
    poller.register(control, 0)  # the end of the pipe only: what is said there is for the job
    poller.register(awake, select.POLLIN)
    while (status := _reap_ended(job)) is None:
        if any(fd == control for fd, _ in poller.poll()) or os.getppid() != worker:
            return None
        os.read(awake, 4096)
    return status


def _reap_ended(job: int) -> int | None:
    """Reap whoever has ended; the job's wait status if it is among them."""
    job_status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == job:
                job_status = ended[1]
    return job_status


def _end_everything() -> dict[int, int]:
    """Kill and reap until there is nobody below: wait status by process.

    The dead hand their children up to here, so killing one's own children, again and again,
    reaches everybody, whatever session or group they went to.
    """
    statuses: dict[int, int] = {}
    while True:
        for child in children():
            os.kill(child, signal.SIGKILL)
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return statuses
        statuses[pid] = status


def children() -> Iterator[int]:
    """The processes whose parent is this one, zombies included."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end while one looks at it
            # "pid (name) state parent ...", where the name may hold anything, ")" too
            parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                yield int(process.name)


def _end_like(status: int) -> None:
    """End this process the way another one did, for whoever waits for it."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the job's own dump is the one of interest
    with suppress(OSError):  # the disposition of SIGKILL cannot be set, nor need it be
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
