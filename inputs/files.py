"""An input as a file on this worker's disk."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
from contextlib import asynccontextmanager, contextmanager
from io import FileIO
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from inputs.errors import DiskFull, InputNotStored
from utils import Frozen, Sha256

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

#: Bytes that are read, hashed and written at a time.
CHUNK = 1 << 20
#: What a full disk says, and a full quota.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Blob(Frozen):
    """What is known of a file that is whole."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256
    #: The version by the words of whoever it came from; None if they have none.
    etag: str | None = None


def part_beside(path: Path) -> Path:
    """A name nobody else uses, in the folder of `path`, so that a rename makes it `path`."""
    return path.with_name(f".{secrets.token_hex(12)}.part")


@asynccontextmanager
async def new_part_beside(path: Path) -> AsyncIterator[Path]:
    """An empty file to fill and rename to `path`; removed in the end if it was not renamed."""
    part = part_beside(path)
    with disk_errors():
        make_empty(part)
    try:
        yield part
    finally:
        if part.exists():  # as a rule it was renamed, and there is nothing to wait for
            await remove(part)


def make_empty(path: Path) -> None:
    """A new file. Raises OSError, also if there is one."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


async def remove(path: Path) -> None:
    """See it gone, even if the caller is cancelled. Off the event loop: gigabytes take a while."""
    await asyncio.shield(asyncio.to_thread(path.unlink, missing_ok=True))


async def to_the_end(call: Callable[[], T]) -> T:
    """What `call` returns, in a thread. When cancelled, waits until it has ended.

    For what is short and makes files: nothing appears any more in a folder that its owner, who
    was cancelled, is about to remove.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def open_regular(path: Path) -> FileIO:
    """Open a regular file to read, without following a link and without waiting for a writer.

    Raises:
        FileNotFoundError: there is none; a link, a FIFO or an unreadable file counts as none.
    """
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EACCES}:
            raise missing from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise missing
    return FileIO(handle, "rb")


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Make the file the `offset` bytes it begins with and `data`, nothing after.

    Keeps no file open between calls and never makes one: a thread that is late, because its
    caller was cancelled, finds the file gone and leaves nothing behind.
    """
    with FileIO(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        unwritten = memoryview(data)
        while unwritten:
            unwritten = unwritten[file.write(unwritten) :]


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn an `OSError` of this worker's disk into an `InputNotStored`, without its paths.

    Raises DiskFull, which is one, if less on the disk would help.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        kind = DiskFull if error.errno in FULL else InputNotStored
        raise kind(f"this worker could not store the input: {reason}") from error
