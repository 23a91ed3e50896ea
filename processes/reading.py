"""A record as it lies in the store: read, decoded, or typed as what it is not."""

from __future__ import annotations

from pydantic import ValidationError

from processes.record import Record, record_key
from storage import ObjectNotFound, Store, Stored
from utils import WorkerError


class UnknownProcess(WorkerError):
    """The store has no record with this id. Never raised because the store could not be asked."""

    code = "unknown_process"


class RecordUnreadable(WorkerError):
    """What lies under the record's key is not a record."""

    code = "record_unreadable"


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
        RecordUnreadable: what is there is none.
    """
    return present(decode_record(process_id, (await read_stored(store, process_id)).data))


def decode_record(process_id: str, data: bytes) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise RecordUnreadable(
            f"the record of {process_id} is not one that this worker can read "
            f"({error.error_count()} fields)"
        ) from None


def present(record: Record) -> Record:
    """`record` itself, unless it was deleted: then there is no such process any more."""
    if record.deleted:
        raise UnknownProcess(f"there is no process {record.process_id}; it was deleted")
    return record
