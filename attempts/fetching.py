"""What a job is given: its inputs, fetched into the attempt's folder before the child begins.

Each input is taken apart into files first, each with where its bytes come from and what they must
be. Then all are fetched by way of the worker's cache, under one limit and one deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from attempts.own_files import OwnFolder
from child.names import on_disk
from inputs.blob_cache import BlobCache, Fetch
from inputs.errors import (
    InputMismatch,
    InputMissing,
    InputRefused,
    InputTooLarge,
    InputUnreachable,
)
from inputs.fetch import Limits, fetch
from inputs.files import FULL, Blob, disk_errors, to_the_end
from inputs.folder_files import InputFile, UnknownFolder, file_key
from inputs.folders import InputFolders
from inputs.public_web import Web, parse_allowed_hosts
from inputs.sources import (
    FromFolder,
    FromKey,
    FromProcess,
    FromWeb,
    Input,
    check_shared,
    parse_source,
    without_query,
)
from inputs.touches import Touches
from records.lease import until_answered
from records.manifest import Manifests, artifact_key
from records.reading import UnknownProcess, read_record
from records.record import Record, Status
from storage import ChecksumMismatch, FileFacts, ObjectNotFound, StorageUnavailable, Store
from utils import WorkerError, together
from worker.settings import Settings

T = TypeVar("T")

#: Files of one process that are fetched at a time.
FETCHES = 16


class FileToBring(NamedTuple):
    """One file that a job is to find among its inputs."""

    #: Below the folder `inputs`: the input's name, and for a file of a folder its path there.
    path: str
    #: Names the bytes and where they come from; see `BlobCache.place`. The source is part
    #: of the identity: knowing a file's sha256 gives no access to it.
    identity: str
    immutable: bool
    #: None: nobody knows before it is there.
    size: int | None
    fetch: Fetch
    #: Of its bytes, in hex, where the caller or a manifest declares it.
    sha256: str | None


class InputParts(NamedTuple):
    """What the inputs of all attempts of a worker share."""

    store: Store
    settings: Settings
    #: Inputs that more than one process may need.
    blobs: BlobCache
    #: Which input folders are in use.
    touches: Touches
    manifests: Manifests


class Inputs:
    """The inputs of one attempt, on their way."""

    def __init__(
        self, shared: InputParts, own: OwnFolder, on_progress: Callable[[int, int], None]
    ) -> None:
        """`on_progress(bytes so far, bytes known to come)` is called on the event loop."""
        self._store = shared.store
        self._settings = shared.settings
        self._blobs = shared.blobs
        self._manifests = shared.manifests
        self._folders = _Folders(InputFolders(shared.store, shared.settings), shared.touches)
        self._own = own
        self._on_progress = on_progress
        self._known = self._got = 0
        #: Bytes of each input from the web, as far as they have come.
        self._from_web: dict[str, int] = {}

    async def bring(self, inputs: Mapping[str, Input]) -> None:
        """Make `inputs/{name}` of each: a file, or a folder of files.

        Raises:
            InputMissing, InputMismatch, InputRefused, InputTooLarge, InputUnreachable,
            InputNotStored: as their names say; the message names the input.
            StorageMisconfigured: the store refuses; the message says what to mend.
        """
        seconds = self._settings.input_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                files: list[FileToBring] = []
                for name, asked in inputs.items():
                    with _named(name):
                        files += await self._files(name, asked)
                self._known = sum(file.size or 0 for file in files)
                self._check_size()
                _check_no_file_is_a_folder([file.path for file in files])
                await self._bring_all(files)
                await self._folders.check_again()  # what was written to while it travelled
        except TimeoutError:
            raise InputUnreachable(f"the inputs were not there after {seconds:g} seconds") from None

    async def _bring_all(self, files: list[FileToBring]) -> None:
        turn = asyncio.Semaphore(FETCHES)

        async def bring(file: FileToBring) -> None:
            async with turn:
                with _named(file.path):
                    await self._bring_one(file)

        async with together() as group:
            for file in files:
                group.create_task(bring(file))

    async def _bring_one(self, file: FileToBring) -> None:
        with ExitStack() as held:
            place = self._own.target(f"inputs/{on_disk(file.path)}")
            with disk_errors():
                target = await to_the_end(partial(held.enter_context, place))
            blob = await self._blobs.place(
                file.identity,
                target,
                file.fetch,
                immutable=file.immutable,
                sha256=file.sha256,
            )
        if file.size is None:
            self._web_has_brought(file.path, blob.size)
        elif file.size != blob.size:
            raise InputMismatch(f"it has {blob.size} bytes, not {file.size}")

    def _web_has_brought(self, name: str, size: int) -> None:
        self._from_web[name] = size
        self._check_size()

    @property
    def _left(self) -> int:
        """Bytes that may come beside those that are known to come, or here."""
        return self._settings.max_input_bytes - self._known - sum(self._from_web.values())

    def _check_size(self) -> None:
        if self._left < 0:
            limit = self._settings.max_input_bytes
            raise InputTooLarge(
                f"the inputs have {limit - self._left} bytes or more; WORKER_MAX_INPUT_BYTES is "
                f"{limit}"
            )

    # ---- taking apart

    async def _files(self, name: str, asked: Input) -> list[FileToBring]:
        match parse_source(asked.source):
            case FromFolder(folder, path):
                found = await self._of_folder(folder, path, asked.sha256)
            case FromProcess(process_id, path):
                found = await self._of_process(process_id, path, asked.sha256)
            case FromKey(key):
                found = [await self._of_key(key, asked.sha256)]
            case FromWeb(url):
                found = [self._of_web(name, url, asked.sha256)]
        alone = len(found) == 1 and not found[0].path
        if (asked.sha256 or asked.unpack) and not alone:
            raise InputMismatch("it is not a single file: no `sha256`, no `unpack`")
        return [each._replace(path=f"{name}/{each.path}".rstrip("/")) for each in found]

    async def _of_folder(
        self, folder: str, path: str | None, sha256: str | None
    ) -> list[FileToBring]:
        chosen = list(_below(await self._folders.completed(folder), path))
        if not chosen:
            raise InputMissing(f"the input folder {folder!r} has no such files")
        await self._folders.check_unchanged(folder, [file for _, file in chosen])
        return [
            self._stored(
                rest,
                file_key(folder, file.path),
                file.size,
                _agreed(file.sha256, None if rest else sha256),
                version=f"{file.size} {file.modified} {file.version}",
            )
            for rest, file in chosen
        ]

    async def _of_process(
        self, process_id: str, path: str | None, sha256: str | None
    ) -> list[FileToBring]:
        try:
            record = await until_answered(lambda: read_record(self._store, process_id))
        except UnknownProcess as error:
            raise InputMissing(str(error)) from None
        found = await until_answered(lambda: self._manifests.artifacts(record))
        artifacts = {artifact.path: artifact for artifact in found}
        _check_whole(record, path in artifacts)
        chosen = list(_below(artifacts, path))
        if not chosen:
            raise InputMissing(f"process {process_id} has no such artifacts")
        return [
            self._stored(
                rest,
                artifact_key(process_id, each.attempt, each.path),
                each.size,
                _agreed(each.sha256, None if rest else sha256),
                version=f"{each.size} {record.attempt} {record.revision}",
            )
            for rest, each in chosen
        ]

    async def _of_key(self, key: str, sha256: str | None) -> FileToBring:
        check_shared(key, self._settings.input_key_prefixes)
        try:
            facts = await until_answered(lambda: self._store.stat(key))
        except ObjectNotFound:
            raise InputMissing("there is no object of this key") from None
        return self._stored(
            "", key, facts.size, sha256, version=f"{facts.version} {facts.modified}"
        )

    def _stored(
        self, path: str, key: str, size: int, sha256: str | None, *, version: str
    ) -> FileToBring:
        """A file of the store. `version` tells its bytes from others that had or will have its
        key, for as long as nobody knows their sha256."""
        expected = FileFacts(size, sha256) if sha256 else None

        async def fetch_stored(target: Path, _known: Blob | None) -> Blob:
            try:
                facts = await until_answered(lambda: self._download(key, target, expected))
            except ObjectNotFound:
                raise InputMissing(f"{key!r} is not there any more") from None
            except ChecksumMismatch as error:
                raise InputMismatch(str(error)) from None
            return Blob(size=facts.size, sha256=facts.sha256)

        what = f"sha256 {sha256}" if sha256 else version
        identity = f"{self._store.url} {key} {what}"
        return FileToBring(path, identity, True, size, fetch_stored, sha256)

    async def _download(self, key: str, target: Path, expected: FileFacts | None) -> FileFacts:
        with disk_errors():
            try:
                return await self._store.download(
                    key, target, expected=expected, on_bytes=self._passed
                )
            except StorageUnavailable as error:
                # A store in a folder says this of any disk. To read fills only the one written to.
                cause = error.__cause__
                if isinstance(cause, OSError) and cause.errno in FULL:
                    raise cause from None
                raise

    def _of_web(self, name: str, url: str, sha256: str | None) -> FileToBring:
        settings = self._settings
        web = Web(allowed=parse_allowed_hosts(settings.allowed_hosts))

        async def fetch_web(target: Path, known: Blob | None) -> Blob | None:
            came = self._from_web[name] = 0

            def passed(count: int) -> None:
                nonlocal came
                came += count
                self._passed(count)
                self._web_has_brought(name, came)

            limits = Limits(max_bytes=self._left, total_seconds=settings.input_timeout_seconds)
            return await fetch(
                url,
                target,
                web=web,
                limits=limits,
                etag=known.etag if known else None,
                expected_sha256=sha256,
                on_bytes=passed,
            )

        # A link that was signed anew leads to the same bytes, if their sha256 says so.
        identity = f"{without_query(url)} sha256 {sha256}" if sha256 else f"url {url}"
        return FileToBring("", identity, sha256 is not None, None, fetch_web, sha256)

    # ---- small things

    def _passed(self, count: int) -> None:
        self._got += count
        self._on_progress(self._got, self._known)


class _Folders:
    """Input folders as one attempt sees them: each is asked about once, however many inputs."""

    def __init__(self, folders: InputFolders, touches: Touches) -> None:
        self._folders = folders
        self._touches = touches
        self._completed: dict[str, dict[str, InputFile]] = {}
        self._found: dict[str, dict[str, InputFile]] = {}
        self._checked: dict[str, list[InputFile]] = {}

    async def completed(self, folder: str) -> Mapping[str, InputFile]:
        """What it held when it was completed, by path. Raises InputMissing."""
        if folder not in self._completed:
            await until_answered(lambda: self._touches.touch(folder))
            try:
                manifest = await until_answered(lambda: self._folders.manifest(folder))
            except UnknownFolder as error:
                raise InputMissing(str(error)) from None
            self._completed[folder] = {file.path: file for file in manifest.files}
        return self._completed[folder]

    async def check_unchanged(self, folder: str, files: list[InputFile]) -> None:
        """Raises InputMismatch if one was written to since. Those with a sha256 prove themselves:
        without any other the store is not asked."""
        unproven = [file for file in files if file.sha256 is None]
        self._checked.setdefault(folder, []).extend(unproven)
        for file in unproven:
            if not _is_unchanged((await self._now(folder)).get(file.path), file):
                raise InputMismatch(
                    f"{file.path!r} was changed since the folder was completed; complete it again"
                )

    async def check_again(self) -> None:
        """Raises InputMismatch if one that was checked before was written to since then."""
        again, self._found = self._found, {}
        for folder in again:
            await self.check_unchanged(folder, self._checked.pop(folder))

    async def _now(self, folder: str) -> Mapping[str, InputFile]:
        if folder not in self._found:
            paths = self._completed[folder]
            contents = await until_answered(lambda: self._folders.contents(folder, paths))
            self._found[folder] = contents.files
        return self._found[folder]


def _is_unchanged(now: InputFile | None, completed: InputFile) -> bool:
    """Whether a file is as it was completed. A store may tell no version: then size and time do."""
    if now is None or (now.size, now.modified) != (completed.size, completed.modified):
        return False
    return "" in (now.version, completed.version) or now.version == completed.version


def _check_whole(record: Record, single: bool) -> None:
    """Raises InputMissing if less may be there than was to be: nothing is trained on half of it."""
    what = f"process {record.process_id} is {record.status}"
    if record.status is Status.COMPLETED:
        return
    if not record.terminal:
        raise InputMissing(f"{what}: what it makes can be an input when it has ended")
    if not single:
        raise InputMissing(f"{what}, not completed: only single artifacts of it can be inputs")


def _agreed(known: str | None, asked: str | None) -> str | None:
    """What a file's bytes must hash to, by all that is said of it. Raises InputMismatch."""
    if known and asked and known != asked:
        raise InputMismatch("it has another sha256 than the one given")
    return known or asked


def _check_no_file_is_a_folder(paths: list[str]) -> None:
    """Raises InputRefused."""
    folders = {path.rpartition("/")[0] for path in paths}
    folders |= {str(above) for folder in folders for above in PurePosixPath(folder).parents}
    for path in paths:
        if path in folders:
            raise InputRefused(f"input {path!r}: it is a file and also a folder")


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
