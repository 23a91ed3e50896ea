"""What an attempt made: its artifacts, as the manifest lists them, and where they lie."""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from typing import NamedTuple

from pydantic import BaseModel

from processes.record import Record, StoredFile, attempt_prefix
from storage import ObjectNotFound, Store, list_all
from utils import WorkerError

#: Rows of manifests that stay in RAM, of all processes together: some 20 MB.
MAX_ROWS_KEPT = 50_000


class Manifest(BaseModel, frozen=True, extra="ignore"):
    """The list of an attempt's artifacts, written after all of them."""

    process_id: str
    attempt: int
    #: Whether this is all that a completed process made; False after a failure or a stop.
    complete: bool
    files: tuple[StoredFile, ...]
    #: Links that point out of the output folder, and names that no key may have: left behind.
    refused: tuple[str, ...] = ()


class Artifact(NamedTuple):
    """An artifact in the store. `sha256` is None while its attempt has no manifest yet."""

    path: str
    size: int
    sha256: str | None
    content_type: str | None

    @classmethod
    def of(cls, file: StoredFile) -> Artifact:
        return cls(file.path, file.size, file.sha256, file.content_type)


class UnknownArtifact(WorkerError):
    """The process has no artifact of this path (or not yet)."""

    code = "unknown_artifact"


class Manifests:
    """Reads manifests, and remembers those that can never change again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        #: By id, attempt and writer: the last tells an id that was deleted and used again.
        self._kept: OrderedDict[tuple[str, int, str], list[Artifact]] = OrderedDict()
        self._rows = 0

    async def artifacts(self, record: Record) -> list[Artifact]:
        """The artifacts of the current attempt, by path.

        From the record itself if they are few, else from the manifest, else (the attempt goes on,
        or ended without one) from a listing.
        """
        if record.files is not None:
            return [Artifact.of(file) for file in record.files]
        key = (record.process_id, record.attempt, record.writer.nonce)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            stored = await self._store.get(manifest_key(record.process_id, record.attempt))
        except ObjectNotFound:
            return await self._listed(record)
        manifest = Manifest.model_validate_json(stored.data)
        artifacts = [Artifact.of(file) for file in manifest.files]
        if manifest.complete:  # the last word about this attempt
            self._keep(key, artifacts)
        return artifacts

    async def _listed(self, record: Record) -> list[Artifact]:
        prefix = artifact_key(record.process_id, record.attempt, "")
        return [
            Artifact(row.key.removeprefix(prefix), row.size, None, None)
            async for row in list_all(self._store, prefix)
        ]

    def _keep(self, key: tuple[str, int, str], artifacts: list[Artifact]) -> None:
        self._kept[key] = artifacts
        self._rows += len(artifacts)
        while self._rows > MAX_ROWS_KEPT:
            self._rows -= len(self._kept.popitem(last=False)[1])


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


def artifact_key(process_id: str, attempt: int, path: str) -> str:
    return f"{attempt_prefix(process_id, attempt)}artifacts/{path}"


def manifest_key(process_id: str, attempt: int) -> str:
    return f"{attempt_prefix(process_id, attempt)}manifest.json"
