"""Cancel notes: how somebody who may not write a record tells its owner to stop.

A note is an object beside the record. Anyone may lay it there, a caller with a presigned link
included, so whatever it holds means "cancel"; only this worker's own notes say more.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import NamedTuple

from processes.record import cancel_key
from storage import ObjectNotFound, Store


class Note(NamedTuple):
    """A cancel note that lies beside a record."""

    #: Names this very note: bytes and time, since two empty notes have the same bytes.
    version: str
    #: RunPod stopped the job somewhere else; a later delivery may resume the process.
    by_platform: bool
    #: Seconds since it was laid there, by the store's clock; None: unknown.
    age_seconds: float | None


async def read_note(store: Store, process_id: str) -> Note | None:
    try:
        stored = await store.get(cancel_key(process_id))
    except ObjectNotFound:
        return None
    by_platform = False
    with suppress(ValueError, AttributeError, RecursionError):
        by_platform = json.loads(stored.data).get("by") == "platform"
    return Note(f"{stored.version}@{stored.modified}", by_platform, stored.age_seconds)


async def leave_note(store: Store, process_id: str, *, by: str, nonce: str) -> None:
    """Ask the owner to stop. Asking twice is asking once."""
    note = json.dumps({"by": by, "nonce": nonce}).encode()
    await store.put(cancel_key(process_id), note, content_type="application/json")
