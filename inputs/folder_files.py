"""What an input folder is: its keys, its manifest, the ways to bring a file. Pure.

Files lie at `inputs/{folder}/{path}`. What the worker keeps for itself lies beside them under
`inputs/{folder}/.worker/`, where no caller's file may be.
"""

from __future__ import annotations

import hashlib
import math
import mimetypes
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import BaseModel

from storage import InvalidKey, Listed, check_key
from utils import Settings, WorkerError

#: Below this lie all input folders.
PREFIX = "inputs/"
#: What the worker itself keeps in a folder lies below this name; no caller's file may.
OWN = ".worker"
#: A chunk through the action: RunPod takes 10 MB of JSON, and base64 makes 4 bytes of 3.
CHUNK_BYTES = 4 << 20
#: Parts of a big file: at least so large, and at most so many, one link each.
MIN_PART_BYTES, MAX_PARTS = 64 << 20, 1000


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


class InputFile(BaseModel, frozen=True):
    """A file of a folder, as its manifest lists it."""

    path: str
    size: int
    #: As far as anybody told and it was checked.
    sha256: str | None = None
    #: When it was written, in seconds since the epoch by the store's clock.
    modified: float


class FolderManifest(BaseModel, frozen=True, extra="ignore"):
    """What a folder holds: written when a caller says that it is complete."""

    folder: str
    completed_at: datetime
    #: New with every manifest: whoever remembers a file of this folder remembers this with it.
    nonce: str
    files: tuple[InputFile, ...]


class Announced(NamedTuple):
    """A file that a caller wants to bring, or says to have brought."""

    path: str
    size: int
    sha256: str | None = None
    content_type: str | None = None
    #: Of the parts it was put there in.
    upload_id: str | None = None


class Way(NamedTuple):
    """How a caller brings one file."""

    path: str
    via: Literal["put", "parts", "chunks", "exists"]
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
    return check_key(f"{PREFIX}{folder}/{path}")


def manifest_key(folder: str) -> str:
    return f"{PREFIX}{folder}/{OWN}/manifest.json"


def chunk_key(folder: str, path: str, offset: int) -> str:
    return f"{chunks_prefix(folder, path)}{offset:015d}"


def chunks_prefix(folder: str, path: str) -> str:
    name = hashlib.sha256(path.encode()).hexdigest()[:32]  # a path may be a folder of another
    return f"{PREFIX}{folder}/{OWN}/chunks/{name}/"


def callers_files(rows: Iterable[Listed], prefix: str) -> Iterator[InputFile]:
    for row in rows:
        path = row.key.removeprefix(prefix)
        if not path.startswith(f"{OWN}/"):
            yield InputFile(path=path, size=row.size, modified=row.modified)


def part_size(size: int, most: int) -> int:
    """Bytes of each part but the last of a file of `size`; `most` is what one PUT may carry.

    As few parts as can be, since each needs a link; S3 takes at most 10,000 (its documentation,
    "Amazon S3 multipart upload limits").
    """
    wanted = max(MIN_PART_BYTES, math.ceil(size / MAX_PARTS))
    return max(min(wanted, most), math.ceil(size / 10_000))


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
    missing = [file.path for file in announced if file.path not in there]
    if missing:
        raise UploadIncomplete(f"{len(missing)} files are not there, such as {missing[:3]}")
    for file in announced:
        if there[file.path].size != file.size:
            raise UploadMismatch(
                f"{file.path!r} has {there[file.path].size} bytes, not the {file.size} announced"
            )


def other_hash(file: Announced) -> UploadMismatch:
    return UploadMismatch(f"{file.path!r} has another sha256 than was announced")


def check_limits(files: list[Announced], there: Iterable[InputFile], limits: Settings) -> None:
    """Whether `files` may be brought to where `there` is already.

    Raises:
        UploadRefused: a limit would be exceeded; the message says which.
    """
    for file in files:
        if file.size > limits.max_upload_bytes:
            raise UploadRefused(
                f"{file.path!r} has {file.size} bytes; WORKER_MAX_UPLOAD_BYTES allows "
                f"{limits.max_upload_bytes}"
            )
    sizes = {file.path: file.size for file in there} | {f.path: f.size for f in files}
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
