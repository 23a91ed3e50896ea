"""Cancel notes: how a process is stopped by those who may not write its record.

A note is an object beside the record. Callers hold links to write it, so it counts only in the
forms that this worker writes:

- empty, as by a link, or `{"by": "caller", ...}`: a caller cancels the process;
- `{"by": "platform", ...}`: RunPod stopped the job, and a later delivery may resume the process.
  The same bytes must lie among the files of the attempt, where no link writes. The holder of a
  link, who learns neither the bytes nor their nonce, cannot forge them.

Any other object at the key is no note and stops nothing. At most `NOTE_BYTES` of it are read. The
holder of a link can also write an object that the store gives to nobody without a key or a restore
(SSE-C, an archive's storage class); it stops nothing either.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from records.keys import attempt_prefix, cancel_key
from records.record import Record
from storage import ObjectChanged, ObjectExists, ObjectNotFound, StorageMisconfigured, Store
from utils import Frozen, new_nonce

log = logging.getLogger(__name__)

#: This worker's notes have about 100 bytes.
NOTE_BYTES = 1024
#: How often a note is laid anew that another writer forestalled.
TRIES = 5


class Note(NamedTuple):
    """A cancel note that lies beside a record."""

    #: Names this very note: bytes and time, since two empty notes have the same bytes.
    version: str
    #: The attempt whose job RunPod stopped; a later delivery may resume the process. None: a
    #: caller cancels the process.
    attempt: int | None
    #: Seconds since it was laid there, by the store's clock; None: unknown.
    age_seconds: float | None

    @property
    def by_platform(self) -> bool:
        return self.attempt is not None

    def concerns(self, record: Record) -> bool:
        """Whether the owner of `record` has to stop.

        A worker that was frozen may write the platform's note for an attempt that is over.
        """
        return self.version != record.settled_note and self.attempt in (None, record.attempt)

    def outranks_stop_of(self, record: Record) -> bool:
        """Whether it stays when RunPod stops the attempt of `record`.

        A caller's new cancel does, and a note for this attempt or a later one.
        """
        if self.attempt is not None:
            return self.attempt >= record.attempt
        return self.version != record.settled_note


class _Seen(NamedTuple):
    """The object at a note's key."""

    #: As the store tells it; None: there is no object.
    version: str | None
    #: None: the object, if there is one, is no note.
    note: Note | None


class _ByCaller(Frozen):
    by: Literal["caller"] = "caller"
    #: Two notes that workers lay differ.
    nonce: str = ""


class _ByPlatform(Frozen):
    by: Literal["platform"] = "platform"
    attempt: Annotated[int, Field(ge=1, le=1_000_000)]
    #: A secret: neither a record nor a view holds it.
    nonce: str


_Words = Annotated[_ByCaller | _ByPlatform, Field(discriminator="by")]
_WORDS: TypeAdapter[_ByCaller | _ByPlatform] = TypeAdapter(_Words)


def platform_stop_key(process_id: str, attempt: int) -> str:
    """The key of what proves a note by the platform. Goes with the files of the attempt."""
    return f"{attempt_prefix(process_id, attempt)}stopped_by_platform"


async def read_note(store: Store, process_id: str) -> Note | None:
    """The note at a process. One request; another for a note that is empty or the platform's.

    Raises:
        StorageMisconfigured: the store refuses this object, or all that the worker asks for.
    """
    return (await _look(store, process_id)).note


async def _look(store: Store, process_id: str) -> _Seen:
    """As `read_note`, with the version of the object."""
    try:
        stored = await store.get(cancel_key(process_id), limit=NOTE_BYTES)
    except ObjectNotFound:
        return _Seen(None, None)
    try:
        words = _WORDS.validate_json(stored.data) if stored.data else _ByCaller()
        if isinstance(words, _ByPlatform):
            proof_key = platform_stop_key(process_id, words.attempt)
            if (await store.get(proof_key, limit=NOTE_BYTES)).data != stored.data:
                return _Seen(stored.version, None)
    except (ObjectNotFound, ValidationError):
        return _Seen(stored.version, None)
    attempt = words.attempt if isinstance(words, _ByPlatform) else None
    version = f"{stored.version}@{stored.modified}"
    return _Seen(stored.version, Note(version, attempt, stored.age_seconds))


async def read_note_if_readable(store: Store, process_id: str) -> Note | None:
    """As `read_note`; an object that the store refuses is no note, and is logged."""
    try:
        return await read_note(store, process_id)
    except StorageMisconfigured as error:
        log.warning("process %s: its cancel note cannot be read: %s", process_id, error)
        return None


async def leave_note(store: Store, process_id: str) -> None:
    """Ask the owner to cancel, for a caller. Idempotent; replaces any other note."""
    words = _ByCaller(nonce=new_nonce())
    await store.put(cancel_key(process_id), words.model_dump_json().encode())


async def leave_platform_note(store: Store, record: Record) -> None:
    """Ask the owner of the attempt to stop, for RunPod. The proof is there before the note.

    A caller's cancel is stronger and stays, also one that is laid meanwhile.
    """
    process_id, attempt = record.process_id, record.attempt
    key = cancel_key(process_id)
    data = _ByPlatform(attempt=attempt, nonce=new_nonce()).model_dump_json().encode()
    for _ in range(TRIES):
        try:
            seen = await _look(store, process_id)
        except StorageMisconfigured as error:
            log.warning("process %s: its cancel note cannot be read: %s", process_id, error)
            await store.put(platform_stop_key(process_id, attempt), data)
            await store.put(key, data)  # no worker can read the object, so it cancels nothing
            return
        if seen.note is not None and seen.note.outranks_stop_of(record):
            return
        await store.put(platform_stop_key(process_id, attempt), data)
        with suppress(ObjectChanged, ObjectExists):
            if seen.version is None:
                await store.create(key, data)
            else:
                await store.replace(key, data, seen.version)
            return
    log.warning("process %s: its note changes too often to ask the owner to stop", process_id)
