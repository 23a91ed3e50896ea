"""What an input folder is: its keys, its manifest, the ways to bring a file. Pure.

Files lie at `inputs/{folder}/{path}`. What the worker keeps for itself lies beside them under
`inputs/{folder}/.worker/`, where no caller's file may be.
"""

from __future__ import annotations

import hashlib
import math
import mimetypes
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import BaseModel

from child.names import from_key, in_key
from inputs.sources import NAME
from storage import InvalidKey, Listed, check_key
from utils import WorkerError
from worker.settings import Settings

#: Below this lie all input folders.
PREFIX = "inputs/"
#: What the worker itself keeps in a folder lies below this name; no caller's file may.
OWN = ".worker"
#: A chunk through the action: RunPod takes 10 MB of JSON, and base64 makes 4 bytes of 3.
CHUNK_BYTES = 4 << 20
#: Parts of a big file: at least so large, and at most so many, one link each.
MIN_LINK_PART_BYTES, MAX_LINKS = 64 << 20, 500
#: No link is longer: 3 KB of key when every byte of it is escaped, 4 KB of session token and the
#: rest. So many links as a file may have fit into one page of a reply, with room to spare.
LINK_BYTES = 8000


class UploadRefused(WorkerError):
    """A file may not be put there: its name is taken, or a limit of this worker is exceeded."""

    code = "upload_refused"


class UploadIncomplete(WorkerError):
    """What was announced is not, or not wholly, in the folder; the message names it."""

    code = "upload_incomplete"
    retryable = True


class UploadMismatch(WorkerError):
    """A file in the folder is not the one that was announced; the message names it."""

    code = "upload_mismatch"


class UnknownFolder(WorkerError):
    """There is no input folder of this name, or no such file in it."""

    code = "unknown_folder"


class InputFile(NamedTuple):
    """A file of a folder, as its manifest lists it. No model: there may be 10,000."""

    path: str
    size: int
    #: When it was written, in seconds since the epoch by the store's clock.
    modified: float
    #: As far as anybody told and it was checked.
    sha256: str | None = None
    #: As the store lists it; tells its bytes from others that its key had or will have.
    version: str = ""


#: The sha256 of files as they were listed, which is without it: one that was written to since is
#: another one.
Hashes = dict[InputFile, str]


class FolderManifest(BaseModel, frozen=True, extra="ignore"):
    """What a folder holds: written when a caller says that it is complete."""

    folder: str
    completed_at: datetime
    files: tuple[InputFile, ...]


class Announced(NamedTuple):
    """A file that a caller wants to bring, or says to have brought."""

    path: str
    size: int
    sha256: str | None = None
    content_type: str | None = None
    #: Of the parts it was put there in.
    upload_id: str | None = None


class FolderContents(NamedTuple):
    """What lies in a folder now, complete or not."""

    #: By path; of callers only, and without hashes.
    files: dict[str, InputFile]
    #: By `chunk_name` of the file that they are of, then by offset.
    chunks: dict[str, dict[int, Listed]]
    #: What callers announced of it.
    announcements: list[Listed]

    def named(self, paths: Iterable[str]) -> FolderContents:
        """With those of `paths` for keys that are made of a hash, which a listing cannot undo."""
        names = {key: path for path in paths if (key := in_key(path)) in self.files}
        files = [file._replace(path=names.get(at, at)) for at, file in self.files.items()]
        return self._replace(files={file.path: file for file in files})

    def chunks_of(self, path: str) -> dict[int, Listed]:
        return self.chunks.get(chunk_name(path), {})


class Way(NamedTuple):
    """How a caller brings one file."""

    path: str
    via: Literal["put", "parts", "chunks", "exists", "differs"]
    #: One for `put`; one a part for `parts`, in order.
    urls: tuple[str, ...] = ()
    #: What the PUT must carry, since it is signed.
    headers: Mapping[str, str] = MappingProxyType({})
    #: Bytes of each part or chunk but the last.
    part_bytes: int | None = None
    upload_id: str | None = None


def file_key(folder: str, path: str) -> str:
    """The key of a caller's file.

    Raises:
        InvalidKey: no file may have this path.
    """
    if path.partition("/")[0] == OWN:
        raise InvalidKey(f"{OWN!r} is the worker's own")
    return check_key(f"{PREFIX}{folder}/{in_key(path)}")


def manifest_key(folder: str) -> str:
    return f"{PREFIX}{folder}/{OWN}/manifest.json"


def chunk_key(folder: str, path: str, offset: int) -> str:
    return f"{chunks_prefix(folder, path)}{offset:015d}"


def chunks_prefix(folder: str, path: str) -> str:
    return f"{_all_chunks(folder)}{chunk_name(path)}/"


def chunk_name(path: str) -> str:
    """Where the chunks of a file lie; a path itself may be a folder of another one."""
    return hashlib.sha256(path.encode()).hexdigest()[:32]


def _all_chunks(folder: str) -> str:
    return f"{PREFIX}{folder}/{OWN}/chunks/"


def announcements_prefix(folder: str) -> str:
    return f"{PREFIX}{folder}/{OWN}/announced/"


def is_foreign(key: str) -> bool:
    """Whether no folder and path lead to an object below `PREFIX`."""
    folder, _, rest = key.removeprefix(PREFIX).partition("/")
    return re.fullmatch(NAME, folder) is None or from_key(rest) is None


def callers_files(rows: Iterable[Listed], prefix: str) -> Iterator[InputFile]:
    """Those of `rows` that a path leads to; a bucket may hold others, as a console's folders."""
    for row in rows:
        path = from_key(row.key.removeprefix(prefix))
        if path and not path.startswith(f"{OWN}/"):
            yield InputFile(path, row.size, row.modified, version=row.version)


def contents_of(folder: str, rows: list[Listed]) -> FolderContents:
    """What `rows`, a listing of the whole folder, say."""
    chunks: dict[str, dict[int, Listed]] = {}
    for row in rows:
        if row.key.startswith(_all_chunks(folder)):
            name, offset = row.key.split("/")[-2:]
            if offset.isdecimal():
                chunks.setdefault(name, {})[int(offset)] = row
    files = {file.path: file for file in callers_files(rows, f"{PREFIX}{folder}/")}
    announced = [row for row in rows if row.key.startswith(announcements_prefix(folder))]
    return FolderContents(files, chunks, announced)


def hashes_of(files: Iterable[InputFile]) -> Hashes:
    return {file._replace(sha256=None): file.sha256 for file in files if file.sha256}


def link_part_bytes(file: Announced, most: int) -> int:
    """Bytes of each part but the last of `file`; `most` is what one PUT may carry.

    As few parts as can be, since each needs a link.

    Raises:
        UploadRefused: as many parts as one file may have are too few.
    """
    wanted = max(MIN_LINK_PART_BYTES, math.ceil(file.size / MAX_LINKS))
    if min(wanted, most) * MAX_LINKS < file.size:
        raise UploadRefused(
            f"{file.path!r} has {file.size} bytes; {MAX_LINKS} parts of the {most} bytes that "
            "WORKER_SINGLE_PUT_BYTES allows do not hold it"
        )
    return min(wanted, most)


def content_type_of(file: Announced) -> str:
    return file.content_type or mimetypes.guess_type(file.path)[0] or "application/octet-stream"


def in_order(chunks: dict[int, Listed], file: Announced) -> list[Listed]:
    """The chunks, by their offsets, that make up `file` from its first byte to its last.

    Raises:
        UploadIncomplete: there is a gap, which the message names.
    """
    run: list[Listed] = []
    reached = 0
    while reached < file.size or not run:
        chunk = chunks.get(reached)
        if chunk is None or (chunk.size == 0 and file.size):
            raise UploadIncomplete(
                f"{file.path!r}: the chunk at offset {reached} has not come; the file has "
                f"{file.size} bytes"
            )
        run.append(chunk)
        reached += chunk.size
    if reached > file.size:
        raise UploadMismatch(f"{file.path!r}: chunks of {reached} bytes came, not {file.size}")
    return run


def check_sizes(announced: list[Announced], there: dict[str, InputFile]) -> None:
    """Whether what was announced is there, and of the right size.

    Raises:
        UploadIncomplete: something is not there.
        UploadMismatch: something has another size.
    """
    missing = [file.path for file in announced if file.path not in there]
    if missing:
        names = ", ".join(repr(path) for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UploadIncomplete(f"not there: {names}{more}")
    for file in announced:
        if there[file.path].size != file.size:
            raise UploadMismatch(
                f"{file.path!r} has {there[file.path].size} bytes, not the {file.size} announced: "
                "announce what is there, or bring it again with `overwrite: true`"
            )


def with_hashes(
    announced: list[Announced], there: dict[str, InputFile], known: Hashes
) -> list[InputFile]:
    """What is there, by path, with what is known of it.

    Raises:
        UploadIncomplete: a file is not, any more, the one whose sha256 was proven.
    """
    for file in announced:
        if file.sha256 not in (None, known.get(there[file.path])):
            raise UploadIncomplete(f"{file.path!r} was written to while it was checked")
    return [file._replace(sha256=known.get(file)) for _, file in sorted(there.items())]


def other_hash(file: Announced) -> UploadMismatch:
    return UploadMismatch(f"{file.path!r} has another sha256 than was announced")


def is_there_already(path: str) -> UploadRefused:
    return UploadRefused(f"{path!r} is there already; `overwrite: true` replaces it")


def check_limits(announced: list[Announced], there: FolderContents, limits: Settings) -> None:
    """Whether `announced` may be brought to where `there` is already.

    Chunks count, too: those of a file that is announced as that file, all others as they lie there.

    Raises:
        UploadRefused: a limit would be exceeded; the message says which.
    """
    for file in announced:
        if file.size > limits.max_upload_bytes:
            raise UploadRefused(
                f"{file.path!r} has {file.size} bytes; WORKER_MAX_UPLOAD_BYTES allows "
                f"{limits.max_upload_bytes}"
            )
    sizes = {file.path: file.size for file in there.files.values()}
    sizes |= {file.path: file.size for file in announced}
    names = {chunk_name(file.path) for file in announced} if there.chunks else set()
    for name, chunks in there.chunks.items():
        if name not in names:
            sizes[f"{OWN}/{name}"] = sum(chunk.size for chunk in chunks.values())
    if sum(sizes.values()) > limits.max_folder_bytes:
        raise UploadRefused(
            f"the folder would hold {sum(sizes.values())} bytes; WORKER_MAX_FOLDER_BYTES "
            f"allows {limits.max_folder_bytes}"
        )
    if len(sizes) > limits.max_folder_files:
        raise UploadRefused(
            f"the folder would hold {len(sizes)} files; WORKER_MAX_FOLDER_FILES allows "
            f"{limits.max_folder_files}"
        )
