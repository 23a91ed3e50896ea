"""What a child says, from the bytes of its event pipe to checked values.

The child runs other people's code, so nothing it sends is believed before it is checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from pydantic import Field, JsonValue

from child.context import EVENT_LIMIT
from utils import Frozen

_OUTSIDE: Final = "The child offered a path outside its own folder."


class ProtocolError(Exception):
    """The child sent something that the protocol does not know."""


class Progress(Frozen):
    """How far the job says it is."""

    step: int
    total: int | None
    message: str
    metrics: dict[str, float]


class CheckpointSealed(NamedTuple):
    """The job handed over what lies in the folder `path`, its `seq`-th checkpoint.

    The path is below `sealed/` and relative to the attempt's folder. What lies there is unchecked.
    """

    seq: int
    path: str


class ArtifactReady(NamedTuple):
    """The job says that a file is finished. `path` is relative to the outputs.

    What lies there is unchecked: by the time that it is read it may be something else.
    """

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
    """Cuts the bytes of an event pipe into events."""

    def __init__(self, heard: Callable[[Event | JobEnded], None]) -> None:
        self._heard = heard
        self._partial = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, in any portions. Raises ProtocolError."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in (*lines, self._partial):
            if len(line) > EVENT_LIMIT:
                raise ProtocolError(f"The child sent an event of more than {EVENT_LIMIT} bytes.")
        for line in lines:
            self._heard(self._parse(line))

    def _parse(self, line: bytes) -> Event | JobEnded:
        try:
            fields = json.loads(line, parse_constant=_refuse)
            message = _MESSAGES[fields.pop("event")].model_validate(fields)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ProtocolError("The child sent something that is not an event.") from None
        if isinstance(message, _Checkpoint):
            _check_path(message.path)
            if not message.path.startswith("sealed/"):
                raise ProtocolError(_OUTSIDE)
            return CheckpointSealed(message.seq, message.path)
        if isinstance(message, _Artifact):
            _check_path(message.path)
            return ArtifactReady(message.path)
        assert isinstance(message, Event | JobEnded)
        return message


def _check_path(path: str) -> None:
    """Raise ProtocolError unless it is relative, leads nowhere else and can be a path."""
    if {"", ".", ".."} & set(path.split("/")) or "\0" in path:
        raise ProtocolError(_OUTSIDE)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ProtocolError("The child offered a path that no file can have.") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)
