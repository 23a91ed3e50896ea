"""Input folders in the store: bringing files, completing a folder, looking at it, removing it.

Callers put the bytes there themselves, by links that we sign, or in chunks through us where a
store has no links. A folder is ready to be used once its manifest says so, and the manifest lists
only what was found in the store. Several may write it at a time, by compare-and-swap. Nothing but
`delete` removes a file that somebody put there.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple

from inputs.announcements import Announcements, bound, check_room, news
from inputs.folder_files import (
    CHUNK_BYTES,
    LINK_BYTES,
    PREFIX,
    Announced,
    FolderContents,
    FolderManifest,
    Hashes,
    InputFile,
    UnknownFolder,
    UploadIncomplete,
    Way,
    callers_files,
    check_limits,
    check_sizes,
    chunk_key,
    chunks_prefix,
    content_type_of,
    contents_of,
    file_key,
    hashes_of,
    in_order,
    is_there_already,
    link_part_bytes,
    manifest_key,
    other_hash,
    with_hashes,
)
from storage import (
    ObjectChanged,
    ObjectExists,
    ObjectFacts,
    ObjectNotFound,
    PartsMissing,
    PresignUnsupported,
    Store,
)
from stores.prefixes import Removed, delete_all, list_all
from utils import together, utc_now
from worker.settings import Settings

#: Stretches in which files are read back to be hashed, and how many files at a time.
READ_BYTES, READERS = 8 << 20, 4


class _Written(NamedTuple):
    """A manifest as the store holds it."""

    manifest: FolderManifest
    version: str


class InputFolders:
    """What callers bring, in the store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.announcements = Announcements(store)
        self._store = store
        self._settings = settings

    # ---- bringing

    async def ways(
        self,
        folder: str,
        files: list[Announced],
        *,
        skip: int,
        expires_in: int,
        overwrite: bool,
        has_room: Callable[[int], bool],
    ) -> AsyncIterator[Way]:
        """How to bring each of `files` after the first `skip`, in their order.

        One that is there already is left as it is, and said to be, unless `overwrite`. It ends
        early when there is no more room: `has_room(bytes)` is asked before an upload in parts is
        begun, which nobody could finish if its links were not told.

        Raises:
            UploadRefused: a limit would be exceeded, or a file has too many parts.
        """
        there = await self.contents(folder, [file.path for file in files])
        check_room(there.announcements)
        await asyncio.to_thread(check_limits, files, there, self._settings)
        counts = [self._parts(file) for file in files]
        for file, parts in [*zip(files, counts, strict=True)][skip:]:
            await asyncio.sleep(0)  # thousands of files: others have their turn between two
            if file.path in there.files and not overwrite:
                same_size = there.files[file.path].size == file.size
                yield Way(file.path, "exists" if same_size else "differs")
            elif parts > 1 and not has_room(parts * LINK_BYTES):
                return
            else:
                yield await self._way(folder, file, expires_in, overwrite)

    def _parts(self, file: Announced) -> int:
        most = self._settings.single_put_bytes
        return 1 if file.size <= most else math.ceil(file.size / link_part_bytes(file, most))

    async def _way(self, folder: str, file: Announced, expires_in: int, overwrite: bool) -> Way:
        key = file_key(folder, file.path)
        content_type = content_type_of(file)
        try:
            if self._parts(file) == 1:
                url = await self._store.presign_put(
                    key,
                    expires_in=expires_in,
                    content_type=content_type,
                    size=file.size,
                    create_only=not overwrite,
                )
                headers = {"Content-Type": content_type, "Content-Length": str(file.size)}
                if not overwrite and (await self._store.capabilities()).conditional_writes:
                    headers["If-None-Match"] = "*"
                return Way(file.path, "put", (url,), headers)
            part_bytes = link_part_bytes(file, self._settings.single_put_bytes)
            parts = await self._store.presign_parts(
                key,
                size=file.size,
                part_size=part_bytes,
                expires_in=expires_in,
                content_type=content_type,
            )
        except PresignUnsupported:
            return Way(file.path, "chunks", part_bytes=CHUNK_BYTES)
        return Way(
            file.path, "parts", tuple(parts.urls), part_bytes=part_bytes, upload_id=parts.upload_id
        )

    async def put_chunk(
        self, folder: str, path: str, offset: int, data: bytes, *, overwrite: bool
    ) -> None:
        """Keep a stretch of a file until `complete` puts the file together.

        Every chunk is counted first, by listing the folder, so that those which nobody ever
        completes are bounded: of a file by `max_upload_bytes`, even where they overlap, and all
        together by what a folder may hold.

        Raises:
            UploadRefused: a limit would be exceeded, or a file of this name is there already.
        """
        file_key(folder, path)  # or no file may have this path
        there = await self.contents(folder, [path])
        if path in there.files and not overwrite:
            raise is_there_already(path)
        others = sum(row.size for at, row in there.chunks_of(path).items() if at != offset)
        so_far = Announced(path, max(offset, others) + len(data))
        check_limits([so_far], there, self._settings)
        await self._store.put(chunk_key(folder, path, offset), data)

    # ---- completing

    async def complete(
        self, folder: str, announced: list[Announced], *, overwrite: bool
    ) -> FolderManifest:
        """Check that what was announced is there, whole, and list all that the folder holds.

        What was announced before, with links, binds too, also where `announced` does not name it.

        Raises:
            UploadIncomplete: something is missing.
            UploadMismatch: something has another size or another sha256.
            UploadRefused: a limit is exceeded, or parts or chunks are of a file that is there.
            UnknownFolder: nothing is there at all.
        """
        there = await self.contents(folder)
        if there.chunks and not announced:
            raise UploadIncomplete(
                f"chunks of {len(there.chunks)} files were not completed: name each with its size "
                '(`"files": [{"path": ..., "size": ...}]`), or delete them'
            )
        before = await self.announcements.read(there.announcements)
        paths = {*before.promises, *(file.path for file in announced)}
        there = await asyncio.to_thread(there.named, paths)
        new = news(announced, before.promises)
        announced = bound(announced, before.promises, there.files)
        await asyncio.to_thread(check_limits, announced, there, self._settings)
        apart = [file for file in announced if file.upload_id or there.chunks_of(file.path)]
        hashed = {
            file.path for file in apart if await self._put_together(folder, file, there, overwrite)
        }
        if apart:
            there = await self.contents(folder, paths)
        check_sizes(announced, there.files)
        known = await self._prove(folder, announced, there.files, hashed)
        manifest = await self._list_all(folder, announced, known, paths)
        if new:
            await self.announcements.keep(folder, new)
        await self.announcements.merge(folder, before)
        return manifest

    async def _list_all(
        self, folder: str, announced: list[Announced], known: Hashes, paths: set[str]
    ) -> FolderManifest:
        """Write what the folder holds now. Proving may have taken minutes: it is listed anew, and
        anew again when another has written the manifest since it was read."""
        while True:
            last = await self._last(folder)
            there = (await self.contents(folder, paths)).files
            check_sizes(announced, there)
            if not there:
                raise UnknownFolder(f"there is no input folder {folder!r}")
            files = with_hashes(announced, there, _known(last) | known)
            if manifest := await self._swap(folder, last, files):
                return manifest

    async def _put_together(
        self, folder: str, file: Announced, there: FolderContents, overwrite: bool
    ) -> bool:
        """Make one object of the parts or the chunks that a file came in, unless it is there.

        True if its bytes passed through here, and were what they should be.
        """
        key = file_key(folder, file.path)
        chunks = there.chunks_of(file.path)
        found = None if overwrite else there.files.get(file.path)
        if found is not None:
            if found.size != file.size:
                raise is_there_already(file.path)
        elif file.upload_id is not None:
            try:
                await self._store.join_parts(key, file.upload_id, size=file.size)
            except PartsMissing as error:
                raise UploadIncomplete(f"{file.path!r}: {error}") from error
        else:
            content = self._content([row.key for row in in_order(chunks, file)], file)
            await self._store.upload_stream(
                content, key, size=file.size, content_type=content_type_of(file)
            )
        await self._store.delete([row.key for row in chunks.values()])
        return found is None and file.upload_id is None

    async def _content(self, keys: list[str], file: Announced) -> AsyncIterator[bytes]:
        """What the chunks hold. If that is not the file, the error comes before its end, so that
        nothing appears; the chunks stay, and a wrong one can be sent again."""
        digest, size = hashlib.sha256(), 0
        for key in keys:
            try:
                data = (await self._store.get(key)).data
            except ObjectNotFound:  # another `complete` has put the file together meanwhile
                raise UploadIncomplete(f"{file.path!r}: a chunk has gone; complete again") from None
            await asyncio.to_thread(digest.update, data)
            size += len(data)
            if size <= file.size:
                yield data
        if size != file.size:
            raise UploadIncomplete(f"{file.path!r}: a chunk was sent again; complete again")
        if file.sha256 not in (None, digest.hexdigest()):
            raise other_hash(file)

    async def _prove(
        self,
        folder: str,
        announced: list[Announced],
        there: dict[str, InputFile],
        hashed: set[str],
    ) -> Hashes:
        """The sha256 of what was announced: files are read back, unless they are in `hashed` or
        the last manifest knows them already.

        Raises:
            UploadMismatch: one has another sha256.
        """
        turn = asyncio.Semaphore(READERS)

        async def prove(file: Announced) -> None:
            async with turn:
                found = await self._sha256(file_key(folder, file.path))
            if found != file.sha256:
                raise other_hash(file)

        claimed = {there[file.path]: file.sha256 for file in announced if file.sha256}
        known = _known(await self._last(folder)) if claimed else {}
        async with together() as group:
            for file in announced:
                proven = (None, known.get(there[file.path]))
                if file.sha256 not in proven and file.path not in hashed:
                    group.create_task(prove(file))
        return claimed

    async def _sha256(self, key: str) -> str:
        """Of an object as it lies there, read at constant memory."""
        digest, offset = hashlib.sha256(), 0
        while True:
            data = await self._store.get_range(key, offset=offset, length=READ_BYTES)
            await asyncio.to_thread(digest.update, data)
            if len(data) < READ_BYTES:
                return digest.hexdigest()
            offset += READ_BYTES

    # ---- looking

    async def manifest(self, folder: str) -> FolderManifest:
        """What the folder holds, as it was last completed.

        Raises:
            UnknownFolder: nobody has completed it.
        """
        last = await self._last(folder)
        if last is None:
            raise UnknownFolder(
                f"there is no input folder {folder!r}, or it was not completed: send `upload` with "
                "`complete: true`"
            )
        return last.manifest

    async def check_known(self, folder: str) -> None:
        """Raises UnknownFolder if nothing lies there, be it a chunk."""
        if not (await self._store.list(f"{PREFIX}{folder}/", limit=1)).objects:
            raise UnknownFolder(f"there is no input folder {folder!r}")

    async def is_complete(self, folder: str) -> bool:
        return await self._facts(manifest_key(folder)) is not None

    async def page(
        self, folder: str, after: str | None, limit: int
    ) -> tuple[list[InputFile], str | None]:
        """Up to `limit` files after the end `after` of a key, and such an end if there are more.

        One request. A page may be short, or even empty, and still not be the last.
        """
        prefix = f"{PREFIX}{folder}/"
        start = f"{prefix}{after}" if after else None
        page = await self._store.list(prefix, start_after=start, limit=limit)
        files = list(callers_files(page.objects, prefix))
        return files, page.next.removeprefix(prefix) if page.next else None

    async def contents(self, folder: str, paths: Iterable[str] = ()) -> FolderContents:
        """What lies there now, complete or not, with the names of `paths`.

        One request for 1000 objects, which a thread reads: there may be 10,000.
        """
        rows = [row async for row in list_all(self._store, f"{PREFIX}{folder}/")]
        return await asyncio.to_thread(lambda: contents_of(folder, rows).named(paths))

    async def _facts(self, key: str) -> ObjectFacts | None:
        try:
            return await self._store.stat(key)
        except ObjectNotFound:
            return None

    # ---- the manifest

    async def _last(self, folder: str) -> _Written | None:
        try:
            stored = await self._store.get(manifest_key(folder))
        except ObjectNotFound:
            return None
        manifest = await asyncio.to_thread(FolderManifest.model_validate_json, stored.data)
        return _Written(manifest, stored.version)

    async def _swap(
        self, folder: str, last: _Written | None, files: list[InputFile]
    ) -> FolderManifest | None:
        """Write the manifest in place of `last`; None if another one was written meanwhile."""
        key = manifest_key(folder)
        manifest, data = await asyncio.to_thread(_manifest_of, folder, files)
        try:
            if last is None:
                await self._store.create(key, data)
            else:
                await self._store.replace(key, data, last.version)
        except (ObjectExists, ObjectChanged):
            return None
        return manifest

    # ---- removing

    async def delete(self, folder: str) -> Removed:
        """Remove a folder. Its manifest goes first: half a folder must not pass for a whole one.

        Raises:
            UnknownFolder: there is none.
        """
        manifest = await self._facts(manifest_key(folder))
        await self._store.delete([manifest_key(folder)])
        objects, size = await delete_all(self._store, f"{PREFIX}{folder}/")
        if manifest is not None:
            objects, size = objects + 1, size + manifest.size
        if not objects:
            raise UnknownFolder(f"there is no input folder {folder!r}")
        return Removed(objects, size)

    async def delete_file(self, folder: str, path: str) -> Removed:
        """Remove one file and whatever chunks of it there are.

        The manifest is written last, and whether it lists the file or not: a `complete` that saw
        the file before it went has lost by that, and looks again.

        Raises:
            UnknownFolder: there is no such file.
        """
        key = file_key(folder, path)
        sizes = {
            row.key: row.size async for row in list_all(self._store, chunks_prefix(folder, path))
        }
        if facts := await self._facts(key):
            sizes[key] = facts.size
        await self._store.delete([*sizes])
        await self.announcements.withdraw(folder, path)
        while last := await self._last(folder):
            rest = [each for each in last.manifest.files if file_key(folder, each.path) != key]
            if not sizes and len(rest) == len(last.manifest.files):
                break
            if await self._swap(folder, last, rest):
                return Removed(len(sizes), sum(sizes.values()))
        if not sizes:
            raise UnknownFolder(f"the input folder {folder!r} has no file {path!r}")
        return Removed(len(sizes), sum(sizes.values()))


def _manifest_of(folder: str, files: list[InputFile]) -> tuple[FolderManifest, bytes]:
    manifest = FolderManifest(folder=folder, completed_at=utc_now(), files=tuple(files))
    return manifest, manifest.model_dump_json().encode()


def _known(last: _Written | None) -> Hashes:
    return hashes_of(last.manifest.files) if last else {}
