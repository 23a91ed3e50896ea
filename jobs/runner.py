"""The parent's side of a child: start one attempt, hear what it says, end it, judge how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import JsonValue

from utils import Frozen, WorkerError


class ChildNotStarted(WorkerError):
    """The operating system refused a new process: no memory, no interpreter, no file handles."""

    code: ClassVar[str] = "child_not_started"
    retryable: ClassVar[bool] = True


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


class Progress(Frozen):
    """How far the job says it is."""

    step: int
    total: int | None
    message: str
    metrics: dict[str, float]


class CheckpointSealed(NamedTuple):
    """The job handed over what lies in the folder `path` (absolute), its `seq`-th checkpoint."""

    seq: int
    path: Path


class ArtifactReady(NamedTuple):
    """A finished file: `path` is relative to the outputs, inside them, a regular file."""

    path: str


Event = Progress | CheckpointSealed | ArtifactReady


class Attempt(NamedTuple):
    """What to run. `params` may hold secrets: they travel over a pipe, never argv, env or disk."""

    process_id: str
    kind: str
    params: dict[str, JsonValue]
    number: int
    folder: Path
    resume_from: Path | None
    environment: Mapping[str, str]
    device: str = "auto"


class Child:
    """One running attempt, with everything it starts."""

    pid: int

    @classmethod
    async def spawn(cls, attempt: Attempt) -> Child:
        """Start `attempt`. Raises ChildNotStarted."""
        raise NotImplementedError

    async def run(self, on_event: Callable[[Event], None]) -> Verdict:
        """Follow the child to its end: `on_event` hears each event, then comes the verdict."""
        raise NotImplementedError

    async def stop(self, *, grace_seconds: float) -> None:
        """Ask, then SIGTERM after half the grace, then SIGKILL; returns when all is reaped."""
        raise NotImplementedError

    async def kill(self) -> None:
        """SIGKILL everything the attempt started, and return when all is reaped."""
        raise NotImplementedError

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines the job printed."""
        raise NotImplementedError
