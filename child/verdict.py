"""How an attempt ended, judged from what the job said and from how its process ended."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import JsonValue

from child.events import JobCompleted, JobEnded, JobFailure, JobStopping
from utils import Frozen

#: Where control groups, version 2 and 1, count what was killed for memory in this container.
OOM_COUNTERS: Final = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


class Failure(Frozen):
    """Why a process failed: part of its record and of every reply about it."""

    code: str
    message: str
    retryable: bool = False
    exit_code: int | None = None
    signal: str | None = None
    log_tail: tuple[str, ...] = ()


class Completed(NamedTuple):
    """The job returned `result`, and its process ended cleanly."""

    result: JsonValue


class Stopped(NamedTuple):
    """The attempt ended because it was asked to, and did not complete or fail first."""


class Failed(NamedTuple):
    """The attempt ended in any other way."""

    failure: Failure


Verdict = Completed | Stopped | Failed


class Evidence(NamedTuple):
    """All that bears on how an attempt ended."""

    #: Of the process; -N when signal N ended it.
    exit_code: int
    #: The job's last word, if it came to one.
    final: JobEnded | None
    stop_asked: bool
    #: We sent signals, and before that the job had not failed.
    ended_by_us: bool
    #: After its last word the process did not end by itself.
    lingered: bool
    #: How often the kernel killed for memory meanwhile; None where it cannot be read.
    oom_kills: int | None
    log_tail: tuple[str, ...]


def judge(evidence: Evidence) -> Verdict:
    """The verdict. What the job says counts only if its process then ends as it should."""
    final = evidence.final
    if isinstance(final, JobCompleted) and evidence.exit_code == 0:
        return Completed(final.result)
    if evidence.ended_by_us or (isinstance(final, JobStopping) and evidence.stop_asked):
        return Stopped()
    if isinstance(final, JobFailure):
        return _failed(evidence, final.code, final.message, retryable=final.retryable)
    if isinstance(final, JobStopping):
        sentence = "The job stopped, though nobody had asked it to: something sent it SIGTERM?"
        return _failed(evidence, "stopped_unasked", sentence, retryable=True)
    if evidence.lingered:
        sentence = "The job returned, but its process did not end: a thread was left running."
        return _failed(evidence, "child_did_not_exit", sentence)
    return _judge_exit(evidence)


def _judge_exit(evidence: Evidence) -> Failed:
    """The process ended without the job's last word, or not as that word promised."""
    code = evidence.exit_code
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and evidence.oom_kills != 0:
        sentence = (
            "The kernel killed it for using too much host memory."
            if evidence.oom_kills
            else "It was killed with SIGKILL, not by this worker: most likely host memory ran out."
        )
        return _failed(evidence, "host_out_of_memory", sentence)
    if code < 0:
        name = _signal_name(code)
        return _failed(evidence, "child_killed", f"The job's process was ended by {name}.")
    if code == 0:
        return _failed(evidence, "no_result", "The job's process ended without a result.")
    return _failed(evidence, "child_exited", f"The job's process ended with exit code {code}.")


def _failed(evidence: Evidence, code: str, message: str, *, retryable: bool = False) -> Failed:
    exit_code = evidence.exit_code
    return Failed(
        Failure(
            code=code,
            message=message,
            retryable=retryable,
            exit_code=exit_code if exit_code >= 0 else None,
            signal=_signal_name(exit_code) if exit_code < 0 else None,
            log_tail=evidence.log_tail,
        )
    )


def _signal_name(exit_code: int) -> str:
    try:
        return signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal
        return f"signal {-exit_code}"


def count_oom_kills() -> int | None:
    """How many processes of this container the kernel has killed for memory, if it tells."""
    for path in OOM_COUNTERS:
        try:
            rows = dict(line.split() for line in path.read_text().splitlines())
            return int(rows["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None
