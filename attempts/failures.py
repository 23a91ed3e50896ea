"""Failures of a process that are not its job's own: this worker's, or the caller's limit. Pure."""

from __future__ import annotations

from child.verdict import Failure
from records.record import Record
from utils import WorkerError


def failure_of(error: Exception) -> Failure:
    """What callers are told of an error that ended a process."""
    if isinstance(error, WorkerError):
        return Failure(code=error.code, message=str(error), retryable=error.retryable)
    if isinstance(error, OSError):
        message = f"this worker's disk or system refused: {error.strerror}"
        return Failure(code="worker_disk", message=message, retryable=True)
    return Failure(code="internal_error", message=f"a fault of the worker: {type(error).__name__}")


def timed_out(record: Record) -> Failure:
    return Failure(
        code="timed_out",
        message=f"the attempt ran longer than timeout_seconds ({record.timeout_seconds:g}); start "
        "it again with the same process_id to resume it, or with a new id and a higher limit",
        retryable=True,
    )
