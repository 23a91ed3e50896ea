"""What a child says, from the bytes of its event pipe to checked values.

The child runs other people's code, so nothing it sends is believed before it is checked. A line
that is no event is dropped, and the run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, FiniteFloat, JsonValue

from child.context import EVENT_LIMIT
from child.names import json_text, relative
from utils import Frozen

log = logging.getLogger(__name__)

#: What a float holds exactly, so that percentages and times can be worked out.
_Count = Annotated[int, Field(ge=-(2**53), le=2**53)]


#: The largest texts that the worker takes over, in characters, and how many metrics. The child
#: cuts, too, but nothing obliges a job to go through it.
MESSAGE_LENGTH, FAILURE_LENGTH, NAME_LENGTH, MAX_METRICS = 500, 2000, 100, 100


def _cut(length: int) -> AfterValidator:
    return AfterValidator(lambda text: text[:length])


def _fewer(metrics: dict[str, float]) -> dict[str, float]:
    """The first MAX_METRICS, by names of at most NAME_LENGTH characters."""
    return {name[:NAME_LENGTH]: value for name, value in islice(metrics.items(), MAX_METRICS)}


class Progress(Frozen):
    """How far the job says it is."""

    step: _Count
    total: _Count | None
    message: Annotated[str, _cut(MESSAGE_LENGTH)]
    metrics: Annotated[dict[str, FiniteFloat], AfterValidator(_fewer)]


class CheckpointSealed(NamedTuple):
    """The job handed over what lies in the folder `path`, its `seq`-th checkpoint.

    The path is below `sealed/` and relative to the attempt's folder. What lies there is unchecked.
    """

    seq: int
    path: str


class ArtifactReady(NamedTuple):
    """The job says that a file is finished. `path` is relative to the outputs, as callers see it.

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
    message: Annotated[str, _cut(FAILURE_LENGTH)]
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
        #: The line that goes on is too long; the rest of it is dropped.
        self._too_long = False
        self._dropped = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, in any portions."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            event = None if self._too_long else parsed(line)
            self._too_long = False
            if event is None:
                self._drop()
            else:
                self._heard(event)
        if len(self._partial) > EVENT_LIMIT:
            self._partial, self._too_long = b"", True

    def _drop(self) -> None:
        self._dropped += 1
        if self._dropped == 1:  # a job can write millions
            log.warning("the job sent a line that is no event; it was dropped, as others will be")


def parsed(line: bytes) -> Event | JobEnded | None:
    """The event that a line holds; None if it holds none."""
    if len(line) > EVENT_LIMIT:
        return None
    try:
        fields = json.loads(line, parse_constant=_refuse)
        if b"\\ud" in line.lower():
            fields = json.loads(json_text(fields))
        message = _MESSAGES[fields.pop("event")].model_validate(fields)
        return _checked(message)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _checked(message: Frozen) -> Event | JobEnded:
    """Raises ValueError for a path that leads elsewhere, or that no file can have."""
    if isinstance(message, _Checkpoint):
        if not relative(message.path).startswith("sealed/"):
            raise ValueError("outside")
        return CheckpointSealed(message.seq, message.path)
    if isinstance(message, _Artifact):
        return ArtifactReady(relative(message.path))
    assert isinstance(message, Event | JobEnded)
    return message


def _refuse(constant: str) -> None:
    raise ValueError(constant)
