"""The actions about files: what processes made, and what callers bring. Links, never payloads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from pydantic import JsonValue

from api.actions import (
    ID_PATTERN,
    BulkDownloadAction,
    DeleteAction,
    DownloadAction,
    DownloadFileAction,
    ListFilesAction,
    UploadAction,
)
from api.parsing import InvalidRequest
from child.names import in_key
from inputs.folder_files import PREFIX, Announced, Way, file_key
from inputs.folders import InputFolders
from inputs.touches import Touches
from process_manager import ProcessManager
from records.manifest import Artifact, UnknownArtifact, artifact_key, choose, find
from records.reading import RecordUnreadable, UnknownProcess
from records.record import Record
from records.replies import Reply, ReplyPage, page_of
from records.view import Snapshot
from storage import ChecksumMismatch, ObjectNotFound, Store, WantedLink
from utils import timestamp, utc_now
from worker.settings import Settings

#: Rows of one page at most; fewer where they would not fit into a reply.
MAX_ROWS = 1000
#: Processes of a bulk download that are looked up at a time.
AT_ONCE = 10

FileAction = (
    DownloadAction
    | BulkDownloadAction
    | DownloadFileAction
    | UploadAction
    | ListFilesAction
    | DeleteAction
)


class _Item(NamedTuple):
    """One process of a bulk download, with those of its artifacts that are still to be told."""

    process_id: str
    record: Record | None
    left: list[Artifact]
    #: Why there is no record, if there is none.
    status: str = "not_found"


class FileActions:
    """Answers them."""

    def __init__(self, store: Store, manager: ProcessManager, settings: Settings) -> None:
        self._store = store
        self._manager = manager
        self._lookup = manager.lookup
        self._folders = InputFolders(store, settings)
        self._touches = Touches(store)

    async def answer(self, action: FileAction) -> Reply:
        match action:
            case DownloadAction():
                return await self._download(action)
            case BulkDownloadAction():
                return await self._bulk_download(action)
            case DownloadFileAction():
                return await self._download_file(action)
            case UploadAction():
                return await self._upload(action)
            case ListFilesAction():
                return await self._list_files(action)
            case DeleteAction():
                return await self._delete(action)

    # ---- what processes made

    async def page_of_files(
        self,
        snapshot: Snapshot,
        *,
        path: str | None = None,
        pattern: str | None = None,
        attempt: int | None = None,
        after: str = "",
        expires_in: int,
    ) -> Reply:
        """`files`: rows with links of as many artifacts after `after` as one reply can carry.

        Raises:
            UnknownArtifact: none has this `path`.
            UnknownAttempt: the process has had no such `attempt`.
            PresignUnsupported: this store has no links.
        """
        if attempt is not None:
            of_it = await self._lookup.artifacts_of(snapshot, attempt)
            artifacts = choose(of_it, pattern) if path is None else [find(of_it, path)]
        elif path is not None:
            artifacts = [await self._lookup.artifact(snapshot, path)]
        else:
            artifacts = choose(await self._lookup.artifacts(snapshot), pattern)
        left = [artifact for artifact in artifacts if artifact.path > after]
        pairs = [(snapshot.record, artifact) for artifact in left[:MAX_ROWS]]
        rows = await self._rows(pairs, expires_in)
        more = len(rows) < len(left)
        return {"files": rows, "next_cursor": left[len(rows) - 1].path if more else None}

    async def _download(self, action: DownloadAction) -> Reply:
        snapshot = await self._lookup.get(action.process_id)
        page = await self.page_of_files(
            snapshot,
            path=action.path,
            pattern=action.pattern,
            attempt=action.attempt,
            after=action.cursor or "",
            expires_in=action.expires_in,
        )
        refused = snapshot.record.artifacts.model_dump(
            mode="json", include={"refused_count", "refused"}
        )
        return {**_head(snapshot.record), **page, **refused}

    async def _bulk_download(self, action: BulkDownloadAction) -> Reply:
        process_ids = list(dict.fromkeys(action.process_ids))
        first, after = _place(action.cursor, process_ids)
        items: list[_Item] = []
        if after:  # the last page ended within this one
            begun = await self._item(process_ids[first], action.pattern, after)
            items, first = [begun] if begun.left else [], first + 1
        while first < len(process_ids) and sum(len(item.left) for item in items) <= MAX_ROWS:
            asked = process_ids[first : first + AT_ONCE]
            items += await asyncio.gather(*(self._item(each, action.pattern) for each in asked))
            first += len(asked)
        pairs = list(islice(_pairs(items), MAX_ROWS + 1))
        rows = await self._rows(pairs[:MAX_ROWS], action.expires_in)
        if len(rows) == len(pairs):
            return {"processes": [*_grouped(items, rows)], "next_cursor": None}
        record, artifact = pairs[len(rows) - 1]
        told = [item.process_id for item in items].index(record.process_id) + 1
        return {
            "processes": [*_grouped(items[:told], rows)],
            "next_cursor": f"{record.process_id}/{artifact.path}",
        }

    async def _item(self, process_id: str, pattern: str | None, after: str = "") -> _Item:
        """A process that cannot be told of is a row that says so, and no end of the whole."""
        try:
            snapshot = await self._lookup.get(process_id)
        except UnknownProcess:
            return _Item(process_id, None, [])
        except RecordUnreadable:
            return _Item(process_id, None, [], "unreadable")
        artifacts = await self._lookup.artifacts(snapshot)
        left = [each for each in choose(artifacts, pattern) if each.path > after]
        return _Item(process_id, snapshot.record, left)

    async def _rows(self, pairs: list[tuple[Record, Artifact]], expires_in: int) -> list[JsonValue]:
        """A row with a fresh link for each, as many as one reply can carry."""
        if not pairs:
            return []
        expires_at = timestamp(utc_now() + timedelta(seconds=expires_in))
        names = [artifact.path.rpartition("/")[2] for _, artifact in pairs]
        urls = await self._store.presign_gets(
            [
                WantedLink(artifact_key(record.process_id, artifact.attempt, artifact.path), name)
                for (record, artifact), name in zip(pairs, names, strict=True)
            ],
            expires_in=expires_in,
        )
        rows: Iterator[Reply] = (
            {**artifact._asdict(), "filename": name, "url": url, "expires_at": expires_at}
            for (_, artifact), name, url in zip(pairs, names, urls, strict=True)
        )
        return page_of(rows)

    async def _download_file(self, action: DownloadFileAction) -> Reply:
        snapshot = await self._lookup.get(action.process_id)
        artifact = await self._lookup.artifact(snapshot, action.path)
        if action.offset > artifact.size:
            raise InvalidRequest(f"`offset` lies beyond the {artifact.size} bytes of the artifact")
        record = snapshot.record
        key = artifact_key(record.process_id, artifact.attempt, artifact.path)
        try:
            data = await self._store.get_range(key, offset=action.offset, length=action.length)
        except ObjectNotFound:
            raise UnknownArtifact("the artifact is not there any more") from None
        if len(data) != min(action.length, artifact.size - action.offset):
            raise ChecksumMismatch("the artifact was replaced in between; begin again")
        end = action.offset + len(data)
        sha256, text = await asyncio.to_thread(_encoded, data)
        return {
            **_head(record),
            "path": artifact.path,
            "size": artifact.size,
            "file_sha256": artifact.sha256,
            "offset": action.offset,
            "length": len(data),
            "sha256": sha256,
            "data": text,
            "next_offset": end if end < artifact.size else None,
        }

    # ---- what callers bring

    async def _upload(self, action: UploadAction) -> Reply:
        folder = action.folder
        if chunk := action.chunk:
            if chunk.sha256 is not None:
                digest = await asyncio.to_thread(hashlib.sha256, chunk.data)
                if digest.hexdigest() != chunk.sha256:
                    raise ChecksumMismatch("the chunk's bytes are not those that were announced")
            file_key(folder, chunk.path)  # a path that is refused leaves no row
            await self._touches.touch(folder)  # or nothing would lead to a chunk that is left
            await self._folders.put_chunk(
                folder, chunk.path, chunk.offset, chunk.data, overwrite=action.overwrite
            )
            return {
                "folder": folder,
                "path": chunk.path,
                "offset": chunk.offset,
                "length": len(chunk.data),
            }
        announced = [
            Announced(file.path, file.size, file.sha256, file.content_type, file.upload_id)
            for file in action.files
        ]
        if action.complete:
            await self._touches.touch(folder)
            manifest = await self._folders.complete(folder, announced, overwrite=action.overwrite)
            total = sum(file.size for file in manifest.files)
            return {
                "folder": folder,
                "complete": True,
                "count": len(manifest.files),
                "total_bytes": total,
            }
        return await self._upload_links(action, announced)

    async def _upload_links(self, action: UploadAction, announced: list[Announced]) -> Reply:
        page, told = ReplyPage(), list[Way]()
        ways = self._folders.ways(
            action.folder,
            announced,
            skip=action.cursor,
            expires_in=action.expires_in,
            overwrite=action.overwrite,
            has_room=page.has_room,
        )
        expires_at = utc_now() + timedelta(seconds=action.expires_in)
        async for way in ways:  # one at a time: a link to parts is also an upload begun
            if not page.add(_way_row(way, expires_at)):
                break
            told.append(way)
        end = action.cursor + len(page.rows)
        await self._touches.touch(action.folder)  # before anybody has a link to it
        pairs = zip(announced[action.cursor : end], told, strict=True)
        if wanted := [file for file, way in pairs if way.via not in ("exists", "differs")]:
            await self._folders.announcements.keep(action.folder, wanted)
        return {
            "folder": action.folder,
            "files": page.rows,
            "next_cursor": end if end < len(announced) else None,
        }

    async def _list_files(self, action: ListFilesAction) -> Reply:
        if action.folder is not None:
            return await self._list_folder(action, action.folder)
        if action.process_id is not None:
            snapshot = await self._lookup.get(action.process_id)
            artifacts = await self._lookup.artifacts(snapshot)
            left = [a for a in artifacts if a.path > (action.cursor or "")]
            rows = page_of(a._asdict() for a in left[: action.limit])
            more = len(rows) < len(left)
            cursor = left[len(rows) - 1].path if more else None
            return {**_head(snapshot.record), "files": rows, "next_cursor": cursor}
        page = await self._store.list_folders(PREFIX, start_after=action.cursor, limit=action.limit)
        names = [name for name in page.names if re.fullmatch(ID_PATTERN, name)]
        return {"folders": [*names], "next_cursor": page.next}

    async def _list_folder(self, action: ListFilesAction, folder: str) -> Reply:
        files, cursor = await self._folders.page(folder, action.cursor, action.limit)
        rows = page_of(
            {
                "path": file.path,
                "size": file.size,
                "modified_at": timestamp(datetime.fromtimestamp(file.modified, UTC)),
            }
            for file in files
        )
        if len(rows) < len(files):
            cursor = in_key(files[len(rows) - 1].path)
        if not files and action.cursor is None:
            await self._folders.check_known(folder)
        return {
            "folder": folder,
            "complete": await self._folders.is_complete(folder),
            "files": rows,
            "next_cursor": cursor,
        }

    async def _delete(self, action: DeleteAction) -> Reply:
        if action.process_id is not None:
            removed = await self._manager.delete(action.process_id)
            what: Reply = {"process_id": action.process_id}
        elif action.path is not None and action.folder is not None:
            removed = await self._folders.delete_file(action.folder, action.path)
            what = {"folder": action.folder, "path": action.path}
        else:
            assert action.folder is not None
            removed = await self._folders.delete(action.folder)
            what = {"folder": action.folder}
        return {**what, "deleted": {"objects": removed.objects, "bytes": removed.bytes}}


def _head(record: Record) -> Reply:
    return {
        "process_id": record.process_id,
        "status": record.status.value,
        "attempt": record.attempt,
    }


def _pairs(items: list[_Item]) -> Iterator[tuple[Record, Artifact]]:
    for item in items:
        if item.record is not None:
            yield from ((item.record, artifact) for artifact in item.left)


def _grouped(items: list[_Item], rows: list[JsonValue]) -> Iterator[Reply]:
    """`rows`, which are in the order of `items`, each with the process that they are of."""
    left = iter(rows)
    for item in items:
        if item.record is None:
            yield {"process_id": item.process_id, "status": item.status, "files": []}
        else:
            yield {**_head(item.record), "files": [*islice(left, len(item.left))]}


def _place(cursor: str | None, process_ids: list[str]) -> tuple[int, str]:
    """Where a page of a bulk download begins: the process, and the last path told of it."""
    if cursor is None:
        return 0, ""
    process_id, _, path = cursor.partition("/")
    if process_id not in process_ids:
        raise InvalidRequest("`cursor` belongs to a request for other `process_ids`")
    return process_ids.index(process_id), path


def _encoded(data: bytes) -> tuple[str, str]:
    return hashlib.sha256(data).hexdigest(), base64.b64encode(data).decode()


def _way_row(way: Way, expires_at: datetime) -> Reply:
    row: Reply = {"path": way.path, "via": way.via}
    if way.via == "put":
        row |= {"method": "PUT", "url": way.urls[0], "headers": {**way.headers}}
    elif way.via == "parts":
        row |= {"method": "PUT", "urls": [*way.urls], "upload_id": way.upload_id}
    if way.part_bytes is not None:
        row["part_bytes"] = way.part_bytes
    if way.urls:
        row["expires_at"] = timestamp(expires_at)
    return row
