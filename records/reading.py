"""A record as it lies in the store: read, decoded, or typed as what it is not."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from records.keys import record_key
from records.record import FORMAT, Record
from storage import ObjectNotFound, Store, Stored
from utils import WorkerError


class UnknownAttempt(WorkerError):
    """The process has had no such attempt yet."""

    code = "unknown_attempt"


def check_attempt(record: Record, attempt: int) -> None:
    """Raises UnknownAttempt."""
    if not 1 <= attempt <= record.attempt:
        raise UnknownAttempt(
            f"process {record.process_id} has had {record.attempt} attempts so far"
        )


class UnknownProcess(WorkerError):
    """The store has no record with this id. Never raised because the store could not be asked."""

    code = "unknown_process"


class RecordUnreadable(WorkerError):
    """What lies under the record's key is not a record."""

    code = "record_unreadable"


class RecordNewer(RecordUnreadable):
    """A worker of a newer version wrote the record. This worker leaves the process alone."""

    code = "record_newer"
    retryable = True  # another worker of the endpoint may be new enough


class _Format(BaseModel):
    """The part of a record that every version can read."""

    format: int = 0


async def read_stored(store: Store, process_id: str, *, cached: Stored | None = None) -> Stored:
    """The record's object, perhaps `cached` itself.

    Raises:
        UnknownProcess: there is none.
    """
    try:
        return await store.get(record_key(process_id), cached=cached)
    except ObjectNotFound:
        raise UnknownProcess(f"there is no process {process_id}") from None


async def read_record(store: Store, process_id: str) -> Record:
    """The record, fresh from the store.

    Raises:
        UnknownProcess: there is none, or none any more.
        RecordUnreadable: what is there is none, or of a newer format.
    """
    return present(decode_record(process_id, (await read_stored(store, process_id)).data))


def decode_record(process_id: str, data: bytes) -> Record:
    """The record that these bytes are.

    Raises:
        RecordNewer: it has a newer format than this worker knows.
        RecordUnreadable: they are no record of this process.
    """
    try:
        record = Record.model_validate_json(data)
    except ValidationError as error:
        newer = _format_of(data)
        if newer > FORMAT:
            raise RecordNewer(
                f"the record of {process_id} has format {newer}; this worker knows format "
                f"{FORMAT} and leaves it alone: ask a worker of the newer version"
            ) from None
        raise RecordUnreadable(
            f"the record of {process_id} is not one that this worker can read "
            f"({error.error_count()} fields)"
        ) from None
    if record.process_id != process_id:
        raise RecordUnreadable(f"the record of {process_id} is one of another process")
    return record


def _format_of(data: bytes) -> int:
    try:
        return _Format.model_validate_json(data).format
    except ValidationError:
        return 0


def present(record: Record) -> Record:
    """`record` itself, unless it was deleted: then there is no such process any more."""
    if record.deleted:
        raise UnknownProcess(f"there is no process {record.process_id}; it was deleted")
    return record
