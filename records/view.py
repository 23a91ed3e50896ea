"""A process as callers see it: a record, and how this worker came to know it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import JsonValue

from records.record import Record, Status
from utils import timestamp


class Snapshot(NamedTuple):
    """A record with how it came to be known."""

    record: Record
    source: Literal["memory", "storage", "cache"]
    #: Seconds since its last write: by the store's clock, or this worker's if it is the writer.
    #: None: the store did not tell.
    age_seconds: float | None
    #: Whether the store could not be asked, so that this may have been overtaken.
    stale: bool = False
    queue_position: int | None = None

    def lost(self, lease_seconds: float) -> bool:
        """Whether its owner is known not to have written for a lease.

        From memory it is the owner who speaks: it knows that the process lives, store or no store.
        """
        if self.source != "storage" or self.age_seconds is None:
            return False
        return self.age_seconds > lease_seconds and not self.record.released

    @property
    def heartbeat_age_seconds(self) -> float | None:
        """What a view says: None of a process that nobody holds, or if it is unknown."""
        if self.record.released or self.age_seconds is None:
            return None
        return round(self.age_seconds, 1)


def _shown(value: Any) -> JsonValue:
    """A field as JSON has it, with all times in one shape."""
    match value:
        case datetime():
            return timestamp(value)
        case Status():
            return value.value
        case dict():
            return {str(name): _shown(each) for name, each in value.items()}
        case list() | tuple():
            return [_shown(each) for each in value]
    told: JsonValue = value
    return told


def view(snapshot: Snapshot, *, lease_seconds: float) -> dict[str, JsonValue]:
    """A process as every reply shows it. JSON-ready."""
    record = snapshot.record
    fields = record.model_dump(
        include={
            "process_id",
            "kind",
            "status",
            "revision",
            "attempt",
            "phase",
            "created_at",
            "started_at",
            "updated_at",
            "finished_at",
            "progress",
            "cancel_requested",
            "failure",
            "result",
            "artifacts",
            "labels",
            "history",
        },
    )
    lost = snapshot.lost(lease_seconds)
    return {
        **{name: _shown(value) for name, value in fields.items()},
        "status": (Status.INTERRUPTED if lost else record.status).value,
        "worker_id": record.writer.worker_id,
        "queue_position": snapshot.queue_position,
        "resumable": lost or record.resumable,
        "heartbeat_age_seconds": snapshot.heartbeat_age_seconds,
        "source": snapshot.source,
        "stale": snapshot.stale,
    }
