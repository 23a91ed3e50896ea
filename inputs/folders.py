"""Input folders in the store: bringing files, completing a folder, looking at it, removing it.

Callers put the bytes there themselves, by links that we sign, or in chunks through us where a
store has no links. A folder is ready to be used once its manifest says so, and the manifest lists
only what was found in the store. Nothing but `delete` removes a file that somebody put there.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

from inputs.folder_files import (
    CHUNK_BYTES,
    PREFIX,
    Announced,
    FolderManifest,
    InputFile,
    UnknownFolder,
    UploadIncomplete,
    UploadRefused,
    Way,
    callers_files,
    check_limits,
    check_sizes,
    chunk_key,
    chunks_prefix,
    content_type_of,
    file_key,
    in_order,
    manifest_key,
    other_hash,
    part_size,
)
from storage import (
    FileFacts,
    ObjectNotFound,
    PartsMissing,
    PresignUnsupported,
    Removed,
    Store,
    delete_all,
    list_all,
)
from utils import Settings, utc_now

#: Stretches in which files are read back to be hashed, and how many files at a time.
READ_BYTES, READERS = 8 << 20, 4


class InputFolders:
    """What callers bring, in the store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    # ---- bringing

    async def ways(
        self, folder: str, files: list[Announced], *, skip: int, expires_in: int, overwrite: bool
    ) -> AsyncIterator[Way]:
        """How to bring each of `files` after the first `skip`, in their order.

        One that is there already is left as it is, and said to exist, unless `overwrite`.

        Raises:
            UploadRefused: a limit would be exceeded.
        """
        there = {} if overwrite else {row.path: row async for row in self.files(folder)}
        check_limits(files, there.values(), self._settings)
        for file in files[skip:]:
            if file.path in there:
                yield Way(file.path, "exists")
            else:
                yield await self._way(folder, file, expires_in)

    async def _way(self, folder: str, file: Announced, expires_in: int) -> Way:
        key = file_key(folder, file.path)
        content_type = content_type_of(file)
        try:
            if file.size <= self._settings.single_put_bytes:
                url = await self._store.presign_put(
                    key, expires_in=expires_in, content_type=content_type, size=file.size
                )
                headers = {"Content-Type": content_type, "Content-Length": str(file.size)}
                return Way(file.path, "put", (url,), headers)
            part_bytes = part_size(file.size, self._settings.single_put_bytes)
            parts = await self._store.presign_parts(
                key, size=file.size, part_size=part_bytes, expires_in=expires_in,
                content_type=content_type,
            )  # fmt: skip
        except PresignUnsupported:
            return Way(file.path, "chunks", part_bytes=CHUNK_BYTES)
        return Way(
            file.path, "parts", tuple(parts.urls), part_bytes=part_bytes, upload_id=parts.upload_id
        )

    async def put_chunk(
        self, folder: str, path: str, offset: int, data: bytes, *, overwrite: bool
    ) -> None:
        """Keep a stretch of a file until `complete` puts the file together.

        Raises:
            UploadRefused: the file would be too large, or one of this name is there already.
        """
        key = file_key(folder, path)
        if offset + len(data) > self._settings.max_upload_bytes:
            raise UploadRefused(
                f"{path!r} exceeds the {self._settings.max_upload_bytes} bytes that "
                "WORKER_MAX_UPLOAD_BYTES allows"
            )
        if offset == 0 and not overwrite and await self._is_there(key):
            raise UploadRefused(f"{path!r} is there already; `overwrite: true` replaces it")
        await self._store.put(chunk_key(folder, path, offset), data)

    async def _is_there(self, key: str) -> bool:
        try:
            await self._store.stat(key)
        except ObjectNotFound:
            return False
        return True

    # ---- completing

    async def complete(self, folder: str, announced: list[Announced]) -> FolderManifest:
        """Check that what was announced is there, whole, and list all that the folder holds.

        Raises:
            UploadIncomplete: something is missing.
            UploadMismatch: something has another size or another sha256.
            UnknownFolder: nothing is there at all.
        """
        streamed = {file.path for file in announced if await self._put_together(folder, file)}
        there = {file.path: file async for file in self.files(folder)}
        if not there and not announced:
            raise UnknownFolder(f"there is no input folder {folder!r}")
        check_sizes(announced, there)
        await self._prove(folder, [f for f in announced if f.sha256 and f.path not in streamed])
        proven = {file.path: file.sha256 for file in announced}
        before = await self._known_hashes(folder)
        files = [
            file.model_copy(
                update={
                    "sha256": proven.get(path) or before.get((path, file.size, file.modified)),
                }
            )
            for path, file in sorted(there.items())
        ]
        return await self._write(folder, files)

    async def _write(self, folder: str, files: list[InputFile]) -> FolderManifest:
        manifest = FolderManifest(
            folder=folder, completed_at=utc_now(), nonce=secrets.token_hex(8), files=tuple(files)
        )
        data = manifest.model_dump_json().encode()
        await self._store.put(manifest_key(folder), data, content_type="application/json")
        return manifest

    async def _put_together(self, folder: str, file: Announced) -> bool:
        """Make one object of the parts or the chunks that a file came in, if it did.

        True if its bytes passed through here, and were what they should be.
        """
        key = file_key(folder, file.path)
        if file.upload_id is not None:
            try:
                await self._store.join_parts(key, file.upload_id, size=file.size)
            except PartsMissing as error:
                raise UploadIncomplete(f"{file.path!r}: {error}") from error
            return False
        prefix = chunks_prefix(folder, file.path)
        chunks = {
            int(row.key.removeprefix(prefix)): row async for row in list_all(self._store, prefix)
        }
        if not chunks:
            return False
        content = self._content([row.key for row in in_order(chunks, file)], file)
        await self._store.upload_stream(
            content, key, size=file.size, content_type=content_type_of(file)
        )
        await self._store.delete([row.key for row in chunks.values()])
        return True

    async def _content(self, keys: list[str], file: Announced) -> AsyncIterator[bytes]:
        """What the chunks hold. If that is not the file, the error comes before its end, so that
        nothing appears; the chunks stay, and a wrong one can be sent again."""
        digest = hashlib.sha256()
        for key in keys:
            data = (await self._store.get(key)).data
            await asyncio.to_thread(digest.update, data)
            yield data
        if file.sha256 not in (None, digest.hexdigest()):
            raise other_hash(file)

    async def _prove(self, folder: str, announced: list[Announced]) -> None:
        """Read files back and compare what they are with what was announced."""
        turn = asyncio.Semaphore(READERS)

        async def prove(file: Announced) -> None:
            async with turn:
                facts = await self.hash(file_key(folder, file.path))
            if facts.sha256 != file.sha256:
                raise other_hash(file)

        try:
            async with asyncio.TaskGroup() as group:
                for file in announced:
                    group.create_task(prove(file))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def hash(self, key: str) -> FileFacts:
        """Size and sha256 of an object as it lies there, read at constant memory."""
        digest, offset = hashlib.sha256(), 0
        while data := await self._store.get_range(key, offset=offset, length=READ_BYTES):
            await asyncio.to_thread(digest.update, data)
            offset += len(data)
        return FileFacts(offset, digest.hexdigest())

    async def _known_hashes(self, folder: str) -> dict[tuple[str, int, float], str]:
        """What the last manifest knew of files that nobody has written to since."""
        try:
            manifest = await self.manifest(folder)
        except UnknownFolder:
            return {}
        return {(f.path, f.size, f.modified): f.sha256 for f in manifest.files if f.sha256}

    # ---- looking

    async def manifest(self, folder: str) -> FolderManifest:
        """What the folder holds, as it was last completed.

        Raises:
            UnknownFolder: nobody has completed it.
        """
        try:
            stored = await self._store.get(manifest_key(folder))
        except ObjectNotFound:
            raise UnknownFolder(
                f"there is no input folder {folder!r}, or it was not completed: send `upload` with "
                "`complete: true`"
            ) from None
        return FolderManifest.model_validate_json(stored.data)

    async def is_complete(self, folder: str) -> bool:
        return await self._is_there(manifest_key(folder))

    async def page(
        self, folder: str, after: str | None, limit: int
    ) -> tuple[list[InputFile], str | None]:
        """Up to `limit` files after `after`, and what to pass as `after` for more, if there are.

        One request. A page may be short, or even empty, and still not be the last.
        """
        prefix = f"{PREFIX}{folder}/"
        start = f"{prefix}{after}" if after else None
        page = await self._store.list(prefix, start_after=start, limit=limit)
        files = list(callers_files(page.objects, prefix))
        return files, page.next.removeprefix(prefix) if page.next else None

    async def files(self, folder: str) -> AsyncIterator[InputFile]:
        """What lies in a folder now, complete or not, by path."""
        prefix = f"{PREFIX}{folder}/"
        async for row in list_all(self._store, prefix):
            for file in callers_files([row], prefix):
                yield file

    # ---- removing

    async def delete(self, folder: str) -> Removed:
        """Remove a folder. Its manifest goes first: half a folder must not pass for a whole one.

        Raises:
            UnknownFolder: there is none.
        """
        await self._store.delete([manifest_key(folder)])
        removed = await delete_all(self._store, f"{PREFIX}{folder}/")
        if not removed.objects:
            raise UnknownFolder(f"there is no input folder {folder!r}")
        return removed

    async def delete_file(self, folder: str, path: str) -> Removed:
        """Remove one file, from the manifest first.

        Raises:
            UnknownFolder: there is no such file.
        """
        key = file_key(folder, path)
        try:
            size = (await self._store.stat(key)).size
        except ObjectNotFound:
            raise UnknownFolder(f"the input folder {folder!r} has no file {path!r}") from None
        with suppress(UnknownFolder):
            manifest = await self.manifest(folder)
            await self._write(folder, [file for file in manifest.files if file.path != path])
        await self._store.delete([key])
        return Removed(1, size)
