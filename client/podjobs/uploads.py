"""Bringing local files into an input folder: only what is missing there, in parallel.

The worker says for each file how it is to be sent (see "Files in" of its README): one PUT, parts,
chunks through the worker, or not at all. Nothing is kept in memory beyond the parts under way.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from podjobs.errors import FileChanged, InvalidPath, TransferFailed, WorkerError
from podjobs.models import UploadRow
from podjobs.retrying import NoAnswer, answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from podjobs.local_files import LocalFile
    from podjobs.transport import Reply, Transport

#: Files or parts under way at a time.
AT_ONCE = 8
#: The worker takes so many files in one folder's request.
MAX_FILES = 10_000
BLOCK = 1 << 18
#: How long a link has to stay valid: hours, for a slow line.
LINK_SECONDS = 6 * 3600
#: How often expired links are asked for anew before the upload counts as failed.
ROUNDS = 3


class Uploaded(NamedTuple):
    """The outcome of an upload."""

    folder: str
    files: int
    total_bytes: int
    #: Files and bytes that were sent; the others were there already.
    sent_files: int
    sent_bytes: int


@dataclass
class _Upload:
    """The state of an upload over its rounds."""

    files: dict[str, LocalFile]
    #: Paths that are in the folder, and those of them that were sent by this upload.
    arrived: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    #: Of files that go in parts.
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[LocalFile]:
        """Files that have not arrived, in their order."""
        return [file for path, file in self.files.items() if path not in self.arrived]


class Uploader:
    """Sends files through one endpoint."""

    def __init__(self, asks: Transport, http: httpx.AsyncClient) -> None:
        self._asks = asks
        self._http = http

    async def upload(
        self,
        folder: str,
        files: Sequence[LocalFile],
        *,
        overwrite: bool = False,
        sent: Callable[[int], None] = lambda _: None,
    ) -> Uploaded:
        """Make `folder` hold `files`, complete and checked.

        Raises:
            InvalidPath: there are too many files.
            FileChanged: a file changed since it was hashed.
            TransferFailed: a file could not be sent.
            WorkerError: the worker refused the upload.
        """
        if len(files) > MAX_FILES:
            raise InvalidPath(
                f"{len(files)} files are too many for one folder (at most {MAX_FILES})",
                next_step="pack them into a zip; kinds that read images take one",
            )
        upload = _Upload({file.path: file for file in files})
        for _ in range(ROUNDS):
            await self._send_missing(folder, upload, sent, overwrite=overwrite)
            if not upload.missing:
                break
        else:
            raise TransferFailed(f"{len(upload.missing)} files could not be sent")
        announced = [_announced(file, upload.ids.get(file.path)) for file in files]
        request: Reply = {"action": "upload", "folder": folder, "complete": True}
        await self._asks.ask({**request, "overwrite": overwrite, "files": announced})
        total = sum(file.size for file in files)
        sent_bytes = sum(upload.files[path].size for path in upload.sent)
        return Uploaded(folder, len(files), total, len(upload.sent), sent_bytes)

    async def _send_missing(
        self, folder: str, upload: _Upload, sent: Callable[[int], None], *, overwrite: bool
    ) -> None:
        """Ask how to send the files that are missing, and send them; links may expire meanwhile."""
        rows = [row async for row in self._rows(folder, upload.missing, overwrite=overwrite)]
        for row in rows:
            if row.via == "differs":
                raise WorkerError(
                    f"the folder {folder} holds another file {row.path!r}",
                    code="upload_refused",
                    next_step="choose another folder, or overwrite the files in it",
                )
        todo = [row for row in rows if row.via != "exists"]
        upload.arrived |= {row.path for row in rows if row.via == "exists"}
        upload.ids |= {row.path: row.upload_id for row in todo if row.upload_id}
        done = await self._send_all(folder, todo, upload.files, sent, overwrite=overwrite)
        upload.sent |= done
        upload.arrived |= done

    async def _rows(
        self, folder: str, files: Sequence[LocalFile], *, overwrite: bool
    ) -> AsyncIterator[UploadRow]:
        """How each file is to be sent."""
        cursor: int | None = 0
        while cursor is not None:
            reply = await self._asks.ask(
                {
                    "action": "upload",
                    "folder": folder,
                    "files": [_announced(file) for file in files],
                    "overwrite": overwrite,
                    "expires_in": LINK_SECONDS,
                    "cursor": cursor,
                }
            )
            for row in reply["files"]:
                yield UploadRow.model_validate(row)
            cursor = reply["next_cursor"]

    async def _send_all(
        self,
        folder: str,
        rows: Iterable[UploadRow],
        by_path: dict[str, LocalFile],
        sent: Callable[[int], None],
        *,
        overwrite: bool,
    ) -> set[str]:
        """Send them, some at a time; returns those that arrived (the others' links expired)."""
        places = asyncio.Semaphore(AT_ONCE)
        arrived: set[str] = set()

        async def one(row: UploadRow) -> None:
            file = by_path[row.path]
            if row.via == "chunks":
                async with places:
                    await self._send_chunks(folder, file, row.part_bytes, sent, overwrite)
                arrived.add(row.path)
                return
            pieces = _pieces(row, file)
            outcomes = await asyncio.gather(*(self._put(places, *piece, sent) for piece in pieces))
            if all(outcomes):
                arrived.add(row.path)

        await gather_or_cancel(one(row) for row in rows)
        return arrived

    async def _put(
        self,
        places: asyncio.Semaphore,
        url: str,
        headers: dict[str, str],
        file: LocalFile,
        offset: int,
        length: int,
        sent: Callable[[int], None],
    ) -> bool:
        """Send a stretch of a file to a link. False: the link has expired."""

        async def once() -> httpx.Response:
            body = _Stretch(file, offset, length, sent)
            sizes = {"Content-Length": str(length)}
            try:
                response = await self._http.put(url, content=body, headers={**headers, **sizes})
            except httpx.TransportError:
                body.take_back()
                raise
            if not _arrived(response):
                body.take_back()
            return response

        async with places:
            try:
                response = await answered(once)
            except NoAnswer as error:
                raise TransferFailed(f"{file.path} could not be sent ({error})") from None
        if not _arrived(response) and response.status_code != 403:
            raise TransferFailed(
                f"{file.path} could not be sent: HTTP {response.status_code} {response.text[:200]}"
            )
        return _arrived(response)

    async def _send_chunks(
        self,
        folder: str,
        file: LocalFile,
        part_bytes: int,
        sent: Callable[[int], None],
        overwrite: bool,
    ) -> None:
        """Send a file through the worker, for stores that have no links.

        An empty file is one empty chunk.
        """
        for offset in range(0, max(file.size, 1), part_bytes):
            length = min(part_bytes, file.size - offset)
            data = await asyncio.to_thread(_read, file, offset, length)
            chunk: Reply = {"path": file.path, "offset": offset}
            chunk["data"] = base64.b64encode(data).decode()
            request: Reply = {"action": "upload", "folder": folder, "chunk": chunk}
            await self._asks.ask({**request, "overwrite": overwrite})
            sent(length)


class _Stretch:
    """Bytes of a file as the body of a request; read anew for each try."""

    def __init__(
        self, file: LocalFile, offset: int, length: int, sent: Callable[[int], None]
    ) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._sent = sent
        self._told = 0

    def take_back(self) -> None:
        """The try failed: what it sent does not count."""
        self._sent(-self._told)
        self._told = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left, offset = self._length, self._offset
        while left:
            data = await asyncio.to_thread(_read, self._file, offset, min(BLOCK, left))
            yield data
            self._told += len(data)
            self._sent(len(data))
            offset += len(data)
            left -= len(data)


def _read(file: LocalFile, offset: int, length: int) -> bytes:
    with file.place.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    if len(data) != length:
        raise FileChanged(f"{file.place} became shorter while it was sent")
    return data


def _pieces(
    row: UploadRow, file: LocalFile
) -> list[tuple[str, dict[str, str], LocalFile, int, int]]:
    """URL, headers, file, offset and length of each request that the file takes."""
    if row.via == "put":
        return [(row.url, row.headers, file, 0, file.size)]
    return [
        (url, {}, file, offset, min(row.part_bytes, file.size - offset))
        for url, offset in zip(row.urls, range(0, file.size, row.part_bytes), strict=True)
    ]


def _arrived(response: httpx.Response) -> bool:
    """Whether the file is there; 412 says that an earlier try brought it without an answer."""
    return response.is_success or response.status_code == 412


def _announced(file: LocalFile, upload_id: str | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"path": file.path, "size": file.size, "sha256": file.sha256}
    return row | {"upload_id": upload_id} if upload_id else row


async def gather_or_cancel(tasks: Iterable[Awaitable[None]]) -> None:
    """Wait for all; when one fails, cancel the others, wait for their end and raise its error."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
