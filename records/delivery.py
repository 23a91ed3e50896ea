"""What a delivery of `start` does about a process that exists. Pure, like the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import JsonValue

from child.verdict import Failure
from inputs.sources import Input
from records.record import STOPPED_BY_PLATFORM, TOO_MANY_ATTEMPTS, Record, Status
from utils import WorkerError


class ProcessExists(WorkerError):
    """The id belongs to a process that was started with another kind, params or inputs."""

    code = "process_exists"


def hash_request(process_id: str, request: dict[str, JsonValue]) -> str:
    """Whether two starts of one id ask for the same. Salted with the id, as params hold secrets."""
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{process_id}\n{canonical}".encode()).hexdigest()


class Start(NamedTuple):
    """What one delivery of `start` asks for. `params` are as the caller gave them, valid."""

    process_id: str
    kind: str
    params: dict[str, JsonValue]
    #: `params` as they may be stored: defaults filled in, secrets masked.
    shown_params: dict[str, JsonValue]
    labels: dict[str, str]
    timeout_seconds: float | None = None
    reject_when_busy: bool = False
    runpod_job_id: str | None = None
    #: What the job finds under `inputs`, by name.
    inputs: Mapping[str, Input] = {}
    #: Values that must not be shown of what the caller gave.
    secrets: tuple[str, ...] = ()
    #: What this worker's operator has declared about the program. Not part of what is asked for.
    declaration: JsonValue = None
    #: The hash of the request that this one was read back from, out of a process's record.
    repeats: str | None = None

    @property
    def request_hash(self) -> str:
        if self.repeats is not None:
            return self.repeats
        request: dict[str, JsonValue] = {"kind": self.kind, "params": self.params}
        if self.inputs:
            request["inputs"] = {name: {**each.identity} for name, each in self.inputs.items()}
        return hash_request(self.process_id, request)


class Answer(NamedTuple):
    """It has ended for good; the record is the answer."""


class Follow(NamedTuple):
    """Somebody is at work on it; see it to its end, or its lease."""


class Claim(NamedTuple):
    """Begin another attempt."""

    reason: str


class GiveUp(NamedTuple):
    """It has begun often enough; settle it as failed."""

    failure: Failure


Decision = Answer | Follow | Claim | GiveUp


def decide_delivery(
    record: Record,
    *,
    request_hash: str,
    lease_expired: bool,
    max_attempts: int,
    followed: bool = False,
) -> Decision:
    """What a delivery of `start` does about `record`.

    `followed`: this delivery has seen the process alive before. The end it comes to is the answer,
    also when a later delivery may go on from there: nothing is run again that nobody asked again.

    Raises:
        ProcessExists: it was started with another request.
    """
    if record.request_hash != request_hash:
        raise ProcessExists(
            f"process {record.process_id} was started with another kind, params or inputs; "
            "choose another process_id"
        )
    if record.terminal and (followed or not record.resumable):
        return Answer()
    if not record.released and not lease_expired:
        return Follow()
    if record.runs >= max_attempts:
        return Answer() if record.terminal else GiveUp(_too_many(record.runs))
    if record.released:
        return Claim(f"delivered again after {record.history[-1].reason or record.status}")
    return Claim(f"worker {record.writer.worker_id} was lost")


def takeover_reason(record: Record) -> str:
    """Why the next attempt takes `record` over, in one of four words; for figures."""
    if not record.released:
        return "lost"
    return STOPPED_BY_PLATFORM if record.status is Status.CANCELLED else record.status.value


def _too_many(runs: int) -> Failure:
    return Failure(
        code=TOO_MANY_ATTEMPTS,
        message=f"{runs} attempts began and none came to an end; see history and logs",
    )
