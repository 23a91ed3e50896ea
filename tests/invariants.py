"""What holds for every process at rest, whatever its workers went through."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

from attempts.uploads import checkpoint_key
from records.keys import attempt_prefix, record_key
from records.manifest import Manifest, artifact_key, manifest_key
from records.record import Record, Status
from storage import ObjectNotFound
from tests.servers import keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from records.record import HistoryEntry
    from storage import Store

#: What may stand next to each other in a history.
STEPS = {
    (Status.QUEUED, Status.RUNNING),
    *itertools.product(
        [Status.QUEUED, Status.RUNNING],
        [Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.INTERRUPTED],
    ),
    # a new attempt, after whatever the one before came to
    *itertools.product(
        [*set(Status) - {Status.COMPLETED}],
        [Status.QUEUED],
    ),
    # nobody resumed it: a caller gave it up, or the limit of attempts did
    (Status.INTERRUPTED, Status.CANCELLED),
    (Status.INTERRUPTED, Status.FAILED),
}


async def read_record(store: Store, process_id: str) -> Record | None:
    """What the store holds."""
    try:
        stored = await store.get(record_key(process_id))
    except ObjectNotFound:
        return None
    return Record.model_validate_json(stored.data)


async def violations(store: Store, record: Record, *, rows: bool = True) -> list[str]:
    """What is wrong with a process that has ended: a sentence each."""
    found = list(_of_history(record.history))
    if rows:
        found += await _of_index(store, record)
    found += await _of_checkpoints(store, record)
    if record.status is Status.COMPLETED:
        found += await _of_artifacts(store, record)
        if record.kind == "sleep":
            found += _of_result(record)
    return [f"{record.process_id}: {sentence}" for sentence in found]


def _of_history(history: tuple[HistoryEntry, ...]) -> Iterator[str]:
    if (history[0].status, history[0].attempt) != (Status.QUEUED, 1):
        yield "its history does not begin with its start"
    for one, next_one in itertools.pairwise(history):
        if (one.status, next_one.status) not in STEPS:
            yield f"{one.status} became {next_one.status}"
        begins = next_one.status is Status.QUEUED
        if next_one.attempt != one.attempt + begins:
            yield f"attempt {one.attempt} was followed by {next_one.attempt}"


async def _of_index(store: Store, record: Record) -> list[str]:
    keys = [key for key in await keys_of(store, "index/") if f"~{record.process_id}~" in key]
    if [key.rpartition("~")[2] for key in keys] != [record.status]:
        return [f"it is {record.status}, its rows are {keys}"]
    return []


async def _of_checkpoints(store: Store, record: Record) -> list[str]:
    """Each that the record names is whole: an attempt could resume from it."""
    found = []
    for checkpoint in record.checkpoints:
        for file in checkpoint.files:
            key = checkpoint_key(record.process_id, checkpoint, file.path)
            found += await _of_file(store, key, file.sha256)
    return found


async def _of_artifacts(store: Store, record: Record) -> list[str]:
    try:
        stored = await store.get(manifest_key(record.process_id, record.attempt))
    except ObjectNotFound:
        return ["it is completed and has no manifest"]
    manifest = Manifest.model_validate_json(stored.data)
    found = []
    if (manifest.complete, manifest.attempt) != (True, record.attempt):
        found.append(f"its manifest is of attempt {manifest.attempt}, {manifest.complete=}")
    for file in manifest.files:
        key = artifact_key(record.process_id, file.attempt, file.path)
        found += await _of_file(store, key, file.sha256)
    prefix = f"{attempt_prefix(record.process_id, record.attempt)}artifacts/"
    there = {key.removeprefix(prefix) for key in await keys_of(store, prefix)}
    if there != {file.path for file in manifest.files if file.attempt == record.attempt}:
        found.append(f"its manifest does not list what is there: {there}")
    if len(manifest.files) != record.artifacts.count:
        found.append(f"it says {record.artifacts.count} artifacts and has {len(manifest.files)}")
    return found


async def _of_file(store: Store, key: str, sha256: str) -> list[str]:
    try:
        data = (await store.get(key)).data
    except ObjectNotFound:
        return [f"{key} is missing"]
    return [] if hashlib.sha256(data).hexdigest() == sha256 else [f"{key} has other bytes"]


def _of_result(record: Record) -> list[str]:
    """All steps were done, each by exactly one of the attempts that count."""
    assert isinstance(record.result, dict)
    done, before = (record.result[name] for name in ("steps_run_by_this_attempt", "resumed_from"))
    if done + (before or 0) != record.params["steps"]:
        return [f"{record.params['steps']} steps were asked for: {record.result}"]
    if record.params["artifacts"] != record.artifacts.count:
        return [f"{record.params['artifacts']} artifacts were asked for: {record.artifacts}"]
    return []
