"""What a process has to show: its artifacts, as rows with links."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from pydantic import JsonValue

from processes.record import Record, StoredFile, attempt_prefix
from processes.uploads import Manifest, artifact_key, manifest_key
from storage import ObjectNotFound, Store
from utils import WorkerError

#: Rows of one reply. A row is below 8 KB even with the longest path and link, so a page of them
#: stays below the 8 MB that no reply may exceed.
MAX_ROWS = 1000


class UnknownArtifact(WorkerError):
    """The process has no artifact of this path (or not yet)."""

    code = "unknown_artifact"


class Artifact(NamedTuple):
    """An artifact in the store. `sha256` is None while its attempt has no manifest yet."""

    path: str
    size: int
    sha256: str | None
    content_type: str | None

    @classmethod
    def of(cls, file: StoredFile) -> Artifact:
        return cls(file.path, file.size, file.sha256, file.content_type)


async def read_artifacts(store: Store, record: Record) -> list[Artifact]:
    """The artifacts of the current attempt, by path: from its manifest, else from a listing."""
    try:
        stored = await store.get(manifest_key(record.process_id, record.attempt))
    except ObjectNotFound:
        return await _list_artifacts(store, record)
    return [Artifact.of(file) for file in Manifest.model_validate_json(stored.data).files]


async def _list_artifacts(store: Store, record: Record) -> list[Artifact]:
    prefix = f"{attempt_prefix(record.process_id, record.attempt)}artifacts/"
    found: list[Artifact] = []
    after: str | None = None
    while True:
        page = await store.list(prefix, start_after=after)
        found += [Artifact(o.key.removeprefix(prefix), o.size, None, None) for o in page.objects]
        if page.next is None:
            return found
        after = page.next


def choose(artifacts: list[Artifact], *, path: str | None, pattern: str | None) -> list[Artifact]:
    """Those that were asked for.

    Raises:
        UnknownArtifact: none has this `path`. (A pattern may match nothing.)
    """
    if path is not None:
        chosen = [artifact for artifact in artifacts if artifact.path == path]
        if not chosen:
            raise UnknownArtifact(
                f"the process has no such artifact; it has {len(artifacts)}: leave out `path` to "
                "see them"
            )
        return chosen
    if pattern is not None:
        return [each for each in artifacts if fnmatch.fnmatchcase(each.path, pattern)]
    return artifacts


async def linked(
    store: Store, record: Record, artifacts: list[Artifact], *, expires_in: int, expires_at: str
) -> list[dict[str, JsonValue]]:
    """Rows for a reply, each with a fresh link.

    Raises:
        PresignUnsupported: this store has no links.
    """
    rows: list[dict[str, JsonValue]] = []
    for artifact in artifacts:
        filename = artifact.path.rpartition("/")[2]
        key = artifact_key(record.process_id, record.attempt, artifact.path)
        url = await store.presign_get(key, expires_in=expires_in, filename=filename)
        rows.append({**artifact._asdict(), "filename": filename, "url": url,
                     "expires_at": expires_at})  # fmt: skip
    return rows
