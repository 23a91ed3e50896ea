"""What callers announced of a folder's files. It stays in the folder and binds `complete`.

A caller may pass its links on. So the size and the sha256 that the caller announced
count, and not the object that a link's holder left. Of several announcements the newest counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from inputs.folder_files import (
    Announced,
    InputFile,
    UploadIncomplete,
    UploadRefused,
    announcements_prefix,
)
from storage import Listed, ObjectChanged, ObjectExists, ObjectNotFound, Store, Stored
from utils import new_nonce, together, utc_now

#: Announcements that are read at a time.
READERS = 8
#: The size in the announcement that withdraws a file's earlier ones.
WITHDRAWN = -1
#: What one folder may hold of them: `complete` reads all.
MAX_ROWS, MAX_BYTES = 10_000, 64 << 20
#: `complete` merges so many rows into one, which has this name.
MERGED_FROM, MERGED = 100, "merged"


class Promise(NamedTuple):
    """What was announced of a file, as far as it is checked."""

    path: str
    size: int
    sha256: str | None


Promises = Mapping[str, Promise]
_PROMISES = TypeAdapter(list[Promise])


class FolderAnnouncements(NamedTuple):
    """The announcements of a folder, read and put together."""

    promises: Promises
    #: The oldest first.
    rows: list[Listed]
    #: The version of the merged row among them; None: there is none.
    merged: str | None


class Announcements:
    """Those of input folders, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, folder: str, files: Iterable[Announced]) -> None:
        """Add one. A request."""
        data = await asyncio.to_thread(_written, files)
        # Among those of one tick of the store's clock, the worker's orders them.
        name = f"{int(utc_now().timestamp() * 1000):015d}-{new_nonce()}"
        await self._store.put(f"{announcements_prefix(folder)}{name}", data)

    async def withdraw(self, folder: str, path: str) -> None:
        """Forget what was announced of a file that is deleted. One request, or two."""
        if (await self._store.list(announcements_prefix(folder), limit=1)).objects:
            await self.keep(folder, [Announced(path, WITHDRAWN)])

    async def read(self, rows: list[Listed]) -> FolderAnnouncements:
        """Those that were listed, by path. A request each.

        Raises:
            UploadIncomplete: the folder was changed meanwhile, or one cannot be read.
        """
        turn = asyncio.Semaphore(READERS)

        async def read(row: Listed) -> Stored:
            async with turn:
                try:
                    return await self._store.get(row.key)
                except ObjectNotFound:
                    raise UploadIncomplete(
                        "the folder was deleted or completed meanwhile; complete it again"
                    ) from None

        in_order = sorted(rows, key=_age)
        async with together() as group:
            reading = [group.create_task(read(row)) for row in in_order]
        stored = [task.result() for task in reading]
        try:
            promises = await asyncio.to_thread(_merged, [each.data for each in stored])
        except ValidationError:
            raise UploadIncomplete(
                "an announcement of this folder cannot be read, perhaps one of a newer worker; "
                "delete the folder and upload it again"
            ) from None
        merged = stored[0].version if rows and _is_merged(in_order[0]) else None
        return FolderAnnouncements(promises, in_order, merged)

    async def merge(self, folder: str, read: FolderAnnouncements) -> None:
        """Make one of the rows that were read, if they are many. A write and a delete.

        The write is conditional on what was read: of two workers that merge, one gives up.
        """
        if len(read.rows) < MERGED_FROM:
            return
        key = f"{announcements_prefix(folder)}{MERGED}"
        data = await asyncio.to_thread(_PROMISES.dump_json, [*read.promises.values()])
        with suppress(ObjectChanged, ObjectExists):
            if read.merged is None:
                await self._store.create(key, data)
            else:
                await self._store.replace(key, data, read.merged)
            await self._store.delete([row.key for row in read.rows if not _is_merged(row)])


def check_room(rows: list[Listed]) -> None:
    """Raises UploadRefused if the folder holds so many announcements that no more may come."""
    if len(rows) >= MAX_ROWS or sum(row.size for row in rows) >= MAX_BYTES:
        raise UploadRefused("this folder has been announced to too often; use another folder")


def news(announced: list[Announced], promised: Promises) -> list[Announced]:
    """Files whose announcement is new or has changed."""
    return [file for file in announced if promised.get(file.path) != _promise(file)]


def bound(
    announced: list[Announced], promised: Promises, there: Mapping[str, InputFile]
) -> list[Announced]:
    """`announced` with the hashes that were promised, and what was promised of other files there.

    What a caller says now counts more than what it said before.
    """
    named = {file.path for file in announced}
    others = [each for path, each in promised.items() if path in there and path not in named]
    return [
        *(_with_hash(file, promised.get(file.path)) for file in announced),
        *(Announced(each.path, each.size, each.sha256) for each in others),
    ]


def _with_hash(file: Announced, promise: Promise | None) -> Announced:
    if file.sha256 or promise is None or promise.size != file.size:
        return file
    return file._replace(sha256=promise.sha256)


def _is_merged(row: Listed) -> bool:
    return row.key.endswith(f"/{MERGED}")


def _age(row: Listed) -> tuple[bool, float, str]:
    """Orders rows by age. The merged one was written late and holds the oldest."""
    return not _is_merged(row), row.modified, row.key


def _promise(file: Announced) -> Promise:
    return Promise(file.path, file.size, file.sha256)


def _written(files: Iterable[Announced]) -> bytes:
    return _PROMISES.dump_json([*map(_promise, files)])


def _merged(announcements: list[bytes]) -> Promises:
    promises = (each for data in announcements for each in _PROMISES.validate_json(data))
    newest = {promise.path: promise for promise in promises}
    return {path: promise for path, promise in newest.items() if promise.size != WITHDRAWN}
