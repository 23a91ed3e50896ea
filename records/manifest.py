"""What an attempt made: its artifacts, as the manifest lists them, and where they lie."""

from __future__ import annotations

import asyncio
import fnmatch
from collections import OrderedDict
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel

from child.names import from_key, in_key
from records.keys import attempt_prefix
from records.record import ArtifactFile, Record, RefusedFile
from storage import ObjectNotFound, Store
from stores.prefixes import list_all
from utils import WorkerError, did_you_mean

#: Rows of manifests that stay in RAM, of all processes together: some 20 MB.
MAX_ROWS_KEPT = 50_000


class Manifest(BaseModel, frozen=True, extra="ignore"):
    """The list of an attempt's artifacts, written after all of them."""

    process_id: str
    attempt: int
    #: Whether this is all that a completed process made; False after a failure or a stop.
    complete: bool
    files: tuple[ArtifactFile, ...]
    #: How many entries of the output folder were left behind: links, what is no regular file.
    refused_count: int = 0
    #: The first of them, with reasons.
    refused: tuple[RefusedFile, ...] = ()


class Artifact(NamedTuple):
    """An artifact in the store. `sha256` is None if nothing but its object tells of it."""

    path: str
    size: int
    sha256: str | None
    content_type: str | None
    #: Under whose number it lies.
    attempt: int

    @classmethod
    def of(cls, file: ArtifactFile) -> Artifact:
        return cls(file.path, file.size, file.sha256, file.content_type, file.attempt)


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
        """The artifacts of the process, by path.

        From the record itself if they are few, else from the manifest, else (the attempt ended
        without one) from a listing.
        """
        told = await self._told(record)
        return await self._listed(record.process_id, record.attempt) if told is None else told

    async def of_attempt(self, record: Record, attempt: int) -> list[Artifact]:
        """Those that lie under the number of one attempt, also where a later one replaced them."""
        if attempt == record.attempt:
            artifacts = await self.artifacts(record)
        else:
            told = await self._manifest(record.process_id, attempt)
            if told is None:
                return await self._listed(record.process_id, attempt)
            artifacts = told[1]
        return [each for each in artifacts if each.attempt == attempt]

    async def _listed(self, process_id: str, attempt: int) -> list[Artifact]:
        prefix = artifact_key(process_id, attempt, "")
        listed = [
            Artifact(path, row.size, None, None, attempt)
            async for row in list_all(self._store, prefix)
            if (path := from_key(row.key.removeprefix(prefix)))
        ]
        return sorted(listed)

    async def artifact(self, record: Record, path: str) -> Artifact:
        """One of them, at the price of one request at most.

        Raises:
            UnknownArtifact: none has this path.
        """
        told = await self._told(record)
        if told is not None:
            return find(told, path)
        try:
            facts = await self._store.stat(artifact_key(record.process_id, record.attempt, path))
        except ObjectNotFound:
            raise UnknownArtifact("the process has no such artifact yet") from None
        return Artifact(path, facts.size, None, None, record.attempt)

    async def _told(self, record: Record) -> list[Artifact] | None:
        """What the record or the manifest lists; None if there is no manifest."""
        if record.files is not None:
            return [Artifact.of(file) for file in record.files]
        key = (record.process_id, record.attempt, record.writer.nonce)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        told = await self._manifest(record.process_id, record.attempt)
        if told is None:
            return None
        manifest, artifacts = told
        if manifest.complete and key not in self._kept:  # the last word about this attempt
            self._keep(key, artifacts)
        return artifacts

    async def _manifest(
        self, process_id: str, attempt: int
    ) -> tuple[Manifest, list[Artifact]] | None:
        """What an attempt's manifest says, or the list while it runs; None: there is neither."""
        data = await _read(self._store, process_id, attempt)
        return None if data is None else await asyncio.to_thread(_decode, data)

    def _keep(self, key: tuple[str, int, str], artifacts: list[Artifact]) -> None:
        self._kept[key] = artifacts
        self._rows += len(artifacts)
        while self._rows > MAX_ROWS_KEPT:
            self._rows -= len(self._kept.popitem(last=False)[1])


async def read_manifest(store: Store, process_id: str, attempt: int) -> tuple[ArtifactFile, ...]:
    """The files that an attempt's manifest lists, or its list while it ran.

    An attempt that died before it wrote either has taken over what the one before it lists.

    Raises:
        StorageFailure: the store does not answer.
    """
    for number in range(attempt, 0, -1):
        data = await _read(store, process_id, number)
        if data is not None:
            return (await asyncio.to_thread(Manifest.model_validate_json, data)).files
    return ()


async def _read(store: Store, process_id: str, attempt: int) -> bytes | None:
    for key in (manifest_key(process_id, attempt), running_key(process_id, attempt)):
        with suppress(ObjectNotFound):
            return (await store.get(key)).data
    return None


def _decode(data: bytes) -> tuple[Manifest, list[Artifact]]:
    """In a thread: 10,000 rows take 40 ms."""
    manifest = Manifest.model_validate_json(data)
    return manifest, [Artifact.of(file) for file in manifest.files]


def choose(artifacts: list[Artifact], pattern: str | None) -> list[Artifact]:
    """Those whose path matches the glob, perhaps none; without one, all."""
    if pattern is None:
        return artifacts
    return [each for each in artifacts if fnmatch.fnmatchcase(each.path, pattern)]


def find(artifacts: list[Artifact], path: str) -> Artifact:
    """The one of this path.

    Raises:
        UnknownArtifact: there is none.
    """
    for artifact in artifacts:
        if artifact.path == path:
            return artifact
    hint = did_you_mean(path, [each.path for each in artifacts[:1000]], written="{!r}")
    raise UnknownArtifact(
        f"the process has no such artifact{hint} (`list_files` shows its {len(artifacts)})"
    )


def artifact_key(process_id: str, attempt: int, path: str) -> str:
    return f"{attempt_prefix(process_id, attempt)}artifacts/{in_key(path)}"


def running_key(process_id: str, attempt: int) -> str:
    """Of the list while the attempt runs: never the manifest, which a late write could undo."""
    return f"{attempt_prefix(process_id, attempt)}running.json"


def manifest_key(process_id: str, attempt: int) -> str:
    return f"{attempt_prefix(process_id, attempt)}manifest.json"
