"""Fetching results: in parallel, resumed by range, verified by sha256, put in place at once.

A file is written under `OUT/.podjobs/` and renamed into place when it is whole and its hash is
right, so that a path in the output folder is always a finished file.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx

from podjobs.disk_names import disk_paths
from podjobs.errors import DiskRefused, FileChanged, TransferFailed, UnknownArtifact
from podjobs.local_files import sha256_of
from podjobs.retrying import NoAnswer, answered
from podjobs.uploads import gather_or_cancel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podjobs.models import RemoteFile
    from podjobs.transport import Reply, Transport

#: Files under way at a time.
AT_ONCE = 8
#: Where unfinished files lie in the output folder.
UNFINISHED = ".podjobs"
#: Fresh links of one file before it counts as one that never keeps still.
VERSIONS = 8
CHUNK_BYTES = 4 << 20


class Fetched(NamedTuple):
    """A result on this machine's disk."""

    path: str
    place: Path
    size: int
    #: Whether its sha256 was compared; the worker knows none while the process runs.
    verified: bool
    #: Whether it was here already.
    kept: bool


#: Answers after which the file needs a fresh link: expired (403), gone or replaced.
_SENT_BACK = frozenset({403, 404, 412, 416})


class _LinkUseless(Exception):
    """The link has expired, or the file was replaced."""


class Downloader:
    """Fetches the files of one process."""

    def __init__(self, process_id: str, asks: Transport, http: httpx.AsyncClient) -> None:
        self._id = process_id
        self._asks = asks
        self._http = http

    async def download(
        self,
        files: Sequence[RemoteFile],
        out: Path,
        *,
        got: Callable[[int], None] = lambda _: None,
    ) -> list[Fetched]:
        """Bring `files` into the folder `out`.

        Raises:
            TransferFailed: a file could not be fetched.
            FileChanged: a file was replaced again and again while it was fetched.
            DiskRefused: the disk is full or not writable.
        """
        places = asyncio.Semaphore(AT_ONCE)
        names = disk_paths(file.path for file in files)
        fetched: list[Fetched] = []

        async def one(file: RemoteFile) -> None:
            async with places:
                place = out.joinpath(*names[file.path].split("/"))
                fetched.append(await self._one(file, place, out / UNFINISHED, got))

        try:
            await asyncio.to_thread(_make_folder, out / UNFINISHED)
            await gather_or_cancel(one(file) for file in files)
        except OSError as error:
            raise DiskRefused(f"{error.filename or out}: {error.strerror or error}") from None
        with suppress(OSError):
            (out / UNFINISHED).rmdir()
        return sorted(fetched)

    async def _one(
        self, file: RemoteFile, place: Path, unfinished: Path, got: Callable[[int], None]
    ) -> Fetched:
        if await asyncio.to_thread(_is_here, file, place):
            got(file.size)
            return Fetched(file.path, place, file.size, True, True)
        for _ in range(VERSIONS):
            part = unfinished / _part_name(file)
            try:
                await self._fetch(file, part, got)
                await asyncio.to_thread(_finish, file, part, place)
            except _LinkUseless:
                file = await self._again(file)
            else:
                return Fetched(file.path, place, file.size, file.sha256 is not None, False)
        raise FileChanged(f"{file.path} was replaced again and again while it was fetched")

    async def _again(self, file: RemoteFile) -> RemoteFile:
        """The file as it is now, with a fresh link."""
        request = {"action": "download", "process_id": self._id, "path": file.path}
        reply = await self._asks.ask(request)
        if not reply["files"]:
            raise UnknownArtifact(f"{self._id} has no file {file.path!r} any more")
        return file.model_validate(reply["files"][0])

    async def _fetch(self, file: RemoteFile, part: Path, got: Callable[[int], None]) -> None:
        if file.url is None:
            await self._fetch_chunks(file, part, got)
        else:
            await self._fetch_link(file, file.url, part, got)

    async def _fetch_link(
        self, file: RemoteFile, url: str, part: Path, got: Callable[[int], None]
    ) -> None:
        stream = _Stream(file, url, part, got)
        if file.sha256 is None:  # nothing would tell that the rest belongs to another version
            await asyncio.to_thread(stream.forget)
        try:
            response = await answered(lambda: stream.advance(self._http))
        except NoAnswer as error:
            raise TransferFailed(f"{file.path} could not be fetched ({error})") from None
        if response.is_success:
            return
        if response.status_code not in _SENT_BACK:
            raise TransferFailed(f"{file.path} could not be fetched: HTTP {response.status_code}")
        if response.status_code != 403:
            await asyncio.to_thread(stream.forget)
        raise _LinkUseless

    async def _fetch_chunks(self, file: RemoteFile, part: Path, got: Callable[[int], None]) -> None:
        """Through the worker, for stores that have no links."""
        have = await asyncio.to_thread(_size, part)
        got(have)
        with part.open("r+b" if have else "wb") as stream:
            stream.seek(have)
            while have < file.size:
                request: Reply = {"action": "download_file", "process_id": self._id}
                request |= {"path": file.path, "offset": have, "length": CHUNK_BYTES}
                data = base64.b64decode((await self._asks.ask(request))["data"])
                await asyncio.to_thread(stream.write, data)
                got(len(data))
                have += len(data)


class _Stream:
    """A file on its way into `part`, over as many requests as it takes."""

    def __init__(self, file: RemoteFile, url: str, part: Path, got: Callable[[int], None]) -> None:
        self._file, self._url, self._part = file, url, part
        self._got = got
        self._told = 0
        self._tag = ""

    def forget(self) -> None:
        """Remove what is here: it is no beginning of the file there."""
        self._part.unlink(missing_ok=True)
        self._tell(0)

    async def advance(self, http: httpx.AsyncClient) -> httpx.Response:
        """One request for the bytes that are missing; an answer that is no success changes nothing.

        Raises:
            httpx.TransportError: the connection broke; what arrived is kept.
        """
        have = await asyncio.to_thread(_size, self._part)
        if have and have >= self._file.size:
            self._tell(have)
            return httpx.Response(200)
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._tag:
                headers["If-Range"] = self._tag
        async with http.stream("GET", self._url, headers=headers) as response:
            if not response.is_success:
                await response.aread()
                return response
            self._tag = response.headers.get("ETag", "")
            have = have if response.status_code == 206 else 0
            self._tell(have)
            with self._part.open("r+b" if have else "wb") as disk:
                disk.seek(have)
                async for (
                    block
                ) in response.aiter_raw():  # 64 KB: what arrived before a break is kept
                    have += disk.write(block)
                    self._tell(have)
        return response

    def _tell(self, have: int) -> None:
        self._got(have - self._told)
        self._told = have


def _part_name(file: RemoteFile) -> str:
    """The same for the same bytes, so that a stopped download goes on."""
    known = f"{file.path}\0{file.size}\0{file.sha256}".encode("utf-8", "surrogatepass")
    return f"{hashlib.sha256(known).hexdigest()[:32]}.part"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _is_here(file: RemoteFile, place: Path) -> bool:
    """Whether `place` holds the very bytes of `file`."""
    return (
        file.sha256 is not None
        and place.is_file()
        and place.stat().st_size == file.size
        and sha256_of(place) == file.sha256
    )


def _finish(file: RemoteFile, part: Path, place: Path) -> None:
    """Verify the bytes and move them to where they belong."""
    if file.size == 0:
        part.touch()
    whole = _size(part) == file.size and file.sha256 in (None, sha256_of(part))
    if not whole:
        part.unlink()
        raise _LinkUseless
    _make_folder(place.parent)
    os.replace(part, place)  # noqa: PTH105 - atomic on every system
