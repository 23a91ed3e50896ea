"""What a job is given: its inputs, fetched into the attempt's folder before the child begins.

Each input is taken apart into files first, each with where its bytes come from and what they must
be. Then all are fetched by way of the worker's cache, under one limit and one deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from inputs.blob_cache import Fetch
from inputs.errors import (
    InputMismatch,
    InputMissing,
    InputRefused,
    InputTooLarge,
    InputUnreachable,
)
from inputs.fetch import Limits, fetch
from inputs.files import Blob
from inputs.folder_files import UnknownFolder, file_key
from inputs.folders import InputFolders
from inputs.public_web import Web, parse_allowed_hosts
from inputs.sources import FromFolder, FromKey, FromProcess, FromWeb, Input, parse_source
from processes.lease import until_answered
from processes.manifest import artifact_key
from processes.reading import UnknownProcess, read_record
from processes.record import Status
from processes.worker import Worker
from storage import ChecksumMismatch, FileFacts, ObjectNotFound
from utils import WorkerError

T = TypeVar("T")

#: Files of one process that are fetched at a time.
FETCHES = 8


class Wanted(NamedTuple):
    """One file that a job is to find among its inputs."""

    #: Below the folder `inputs`: the input's name, and for a file of a folder its path there.
    path: str
    #: Names the bytes; see `BlobCache.place`.
    identity: str
    immutable: bool
    #: None: nobody knows before it is there.
    size: int | None
    fetch: Fetch


class Inputs:
    """The inputs of one attempt, on their way."""

    def __init__(self, worker: Worker, folder: Path, on_progress: Callable[[int, int], None]):
        """`on_progress(bytes so far, bytes known to come)` is called on the event loop."""
        self._worker = worker
        self._store = worker.store
        self._settings = worker.settings
        self._folders = InputFolders(worker.store, worker.settings)
        self._folder = folder / "inputs"
        self._on_progress = on_progress
        self._known = self._got = self._kept = 0

    async def bring(self, inputs: Mapping[str, Input]) -> None:
        """Make `inputs/{name}` of each: a file, or a folder of files.

        Raises:
            InputMissing, InputMismatch, InputRefused, InputTooLarge, InputUnreachable,
            InputNotStored: as their names say; the message names the input.
        """
        seconds = self._settings.input_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                wanted: list[Wanted] = []
                for name, asked in inputs.items():
                    with _named(name):
                        wanted += await self._wanted(name, asked)
                self._known = sum(each.size or 0 for each in wanted)
                self._check_size(self._known)
                await self._bring_all(wanted)
        except TimeoutError:
            raise InputUnreachable(f"the inputs were not there after {seconds:g} seconds") from None

    async def _bring_all(self, wanted: list[Wanted]) -> None:
        turn = asyncio.Semaphore(FETCHES)

        async def bring(each: Wanted) -> None:
            async with turn:
                with _named(each.path):
                    await self._bring_one(each)

        try:
            async with asyncio.TaskGroup() as group:
                for each in wanted:
                    group.create_task(bring(each))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _bring_one(self, wanted: Wanted) -> None:
        target = self._folder / wanted.path
        try:
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputRefused("it lies in a folder that is also a file") from None
        blob = await self._worker.blobs.place(
            wanted.identity, target, wanted.fetch, immutable=wanted.immutable
        )
        if wanted.size not in (None, blob.size):
            raise InputMismatch(f"it has {blob.size} bytes, not {wanted.size}")
        self._kept += blob.size
        self._check_size(self._kept)

    def _check_size(self, size: int) -> None:
        limit = self._settings.max_input_bytes
        if size > limit:
            raise InputTooLarge(f"the inputs have {size} bytes; WORKER_MAX_INPUT_BYTES is {limit}")

    # ---- taking apart

    async def _wanted(self, name: str, asked: Input) -> list[Wanted]:
        match parse_source(asked.source):
            case FromFolder(folder, path):
                found = await self._of_folder(folder, path)
            case FromProcess(process_id, path):
                found = await self._of_process(process_id, path)
            case FromKey(key):
                found = [await self._of_key(key, asked.sha256)]
            case FromWeb(url):
                found = [self._of_web(url, asked.sha256)]
        alone = len(found) == 1 and not found[0].path
        if (asked.sha256 or asked.unpack) and not alone:
            raise InputMismatch("it is not a single file: no `sha256`, no `unpack`")
        return [each._replace(path=f"{name}/{each.path}".rstrip("/")) for each in found]

    async def _of_folder(self, folder: str, path: str | None) -> list[Wanted]:
        try:
            manifest = await until_answered(lambda: self._folders.manifest(folder))
        except UnknownFolder as error:
            raise InputMissing(str(error)) from None
        files = {file.path: file for file in manifest.files}
        chosen = list(_below(files, path))
        if not chosen:
            raise InputMissing(f"the input folder {folder!r} has no such files")
        return [
            self._stored(
                rest, file_key(folder, file.path), file.size, file.sha256,
                unhashed=f"folder {folder} {manifest.nonce} {file.path}",
            )
            for rest, file in chosen
        ]  # fmt: skip

    async def _of_process(self, process_id: str, path: str | None) -> list[Wanted]:
        try:
            record = await until_answered(lambda: read_record(self._store, process_id))
        except UnknownProcess as error:
            raise InputMissing(str(error)) from None
        if not (record.status is Status.COMPLETED or (path and record.released)):
            raise InputMissing(f"process {process_id} is {record.status}, not completed")
        artifacts = await until_answered(lambda: self._worker.manifests.artifacts(record))
        chosen = list(_below({artifact.path: artifact for artifact in artifacts}, path))
        if not chosen:
            raise InputMissing(f"process {process_id} has no such artifacts")
        return [
            self._stored(
                rest, artifact_key(process_id, record.attempt, each.path), each.size, each.sha256,
                unhashed=f"process {process_id} {record.attempt} {record.revision} {each.path}",
            )
            for rest, each in chosen
        ]  # fmt: skip

    async def _of_key(self, key: str, sha256: str | None) -> Wanted:
        try:
            facts = await until_answered(lambda: self._store.stat(key))
        except ObjectNotFound:
            raise InputMissing("there is no object of this key") from None
        version = f"key {key} {facts.version} {facts.modified}"
        return self._stored("", key, facts.size, sha256, unhashed=version)

    def _stored(
        self, path: str, key: str, size: int, sha256: str | None, *, unhashed: str
    ) -> Wanted:
        """A file of the store. `unhashed` names its bytes as long as their sha256 is not known."""
        expected = FileFacts(size, sha256) if sha256 else None

        async def fetch_stored(target: Path, _known: Blob | None) -> Blob:
            try:
                facts = await until_answered(
                    lambda: self._store.download(
                        key, target, expected=expected, on_bytes=self._passed
                    )
                )
            except ObjectNotFound:
                raise InputMissing(f"{key!r} is not there any more") from None
            except ChecksumMismatch as error:
                raise InputMismatch(str(error)) from None
            return Blob(size=facts.size, sha256=facts.sha256)

        identity = f"sha256 {sha256}" if sha256 else f"{self._store.url} {unhashed}"
        return Wanted(path, identity, True, size, fetch_stored)

    def _of_web(self, url: str, sha256: str | None) -> Wanted:
        settings = self._settings
        web = Web(allowed=parse_allowed_hosts(settings.allowed_hosts))
        limits = Limits(
            max_bytes=settings.max_input_bytes, total_seconds=settings.input_timeout_seconds
        )

        async def fetch_web(target: Path, known: Blob | None) -> Blob | None:
            return await fetch(
                url, target, web=web, limits=limits, etag=known.etag if known else None,
                expected_sha256=sha256, on_bytes=self._passed,
            )  # fmt: skip

        identity = f"sha256 {sha256}" if sha256 else f"url {url}"
        return Wanted("", identity, sha256 is not None, None, fetch_web)

    # ---- small things

    def _passed(self, count: int) -> None:
        self._got += count
        self._on_progress(self._got, self._known)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """An input that cannot be had is named in the error."""
    try:
        yield
    except WorkerError as error:
        raise type(error)(f"input {what!r}: {error}") from error


def _below(files: Mapping[str, T], path: str | None) -> Iterator[tuple[str, T]]:
    """What `path` names among `files`: one file (and no path is left of it), or all in a folder."""
    if path is not None and path in files:
        yield "", files[path]
        return
    prefix = f"{path}/" if path else ""
    for name in sorted(files):
        if name.startswith(prefix):
            yield name.removeprefix(prefix), files[name]
