"""What a child says, from the bytes of its event pipe to checked values.

The child runs other people's code, so nothing it sends is believed before it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue

from jobs.context import EVENT_LIMIT
from utils import Frozen


class ProtocolError(Exception):
    """The child sent something that the protocol does not know."""


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


class PhaseEntered(Frozen):
    """The child sets up what its kind needs on this machine, or has it and goes on."""

    phase: Literal["preparing", "running"]


Event = Progress | CheckpointSealed | ArtifactReady | PhaseEntered


class JobCompleted(Frozen):
    """The job returned."""

    result: JsonValue


class JobFailure(Frozen):
    """The job raised."""

    code: str = Field(max_length=100)
    message: str = Field(max_length=2000)
    retryable: bool


class JobStopping(Frozen):
    """The job raised JobStopped."""


JobEnded = JobCompleted | JobFailure | JobStopping


class _Checkpoint(Frozen):
    seq: int
    path: str


class _Artifact(Frozen):
    path: str


_MESSAGES: dict[str, type[Frozen]] = {
    "phase": PhaseEntered,
    "progress": Progress,
    "checkpoint": _Checkpoint,
    "artifact": _Artifact,
    "completed": JobCompleted,
    "failed": JobFailure,
    "stopped": JobStopping,
}


class EventReader:
    """Cuts the bytes of an event pipe into events, for an attempt in `folder`."""

    def __init__(self, folder: Path, heard: Callable[[Event | JobEnded], None]) -> None:
        self._folder = folder.resolve()
        self._heard = heard
        self._partial = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, in any portions. Raises ProtocolError."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in (*lines, self._partial):
            if len(line) > EVENT_LIMIT:
                raise ProtocolError(f"The child sent an event of more than {EVENT_LIMIT} bytes.")
        for line in lines:
            event = self._parse(line)
            if event is not None:
                self._heard(event)

    def _parse(self, line: bytes) -> Event | JobEnded | None:
        try:
            fields = json.loads(line, parse_constant=_refuse)
            message = _MESSAGES[fields.pop("event")].model_validate(fields)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ProtocolError("The child sent something that is not an event.") from None
        if isinstance(message, _Checkpoint):
            sealed = self._below(self._folder / "sealed", self._folder / message.path)
            return CheckpointSealed(message.seq, sealed)
        if isinstance(message, _Artifact):
            outputs = self._folder / "outputs"
            path = self._below(outputs, outputs / message.path)
            # Gone by now is the job's right: it may be writing the next one in its place.
            relative = path.relative_to(outputs).as_posix()
            return ArtifactReady(relative) if path.is_file() else None
        assert isinstance(message, Event | JobEnded)
        return message

    @staticmethod
    def _below(base: Path, path: Path) -> Path:
        """`path`, if it lies below `base` and no link leads there."""
        if path == base or not path.is_relative_to(base) or path.resolve() != path:
            raise ProtocolError("The child offered a path outside its own folder.")
        return path


def _refuse(constant: str) -> None:
    raise ValueError(constant)
