"""Open files of a job: their state, and their upload."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from io import FileIO
from typing import Final, NamedTuple

from storage import FileFacts, StorageFailure, Store
from worker.beneath import FileRefused

#: Errors of a disk, and not of a path or of its permissions.
_READ_ERRORS: Final = frozenset({errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG})


class FileState(NamedTuple):
    """The state of a file when it was stored; another one means that it changed.

    Size and time of modification are not enough, because a job can set both.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int


def state_of(file: FileIO) -> FileState:
    facts = os.fstat(file.fileno())
    return FileState(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


async def upload_file(
    store: Store,
    source: FileIO,
    key: str,
    *,
    content_type: str | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> FileFacts:
    """As `Store.upload`. Raises FileRefused if the disk cannot read the file."""
    try:
        return await store.upload(source, key, content_type=content_type, on_bytes=on_bytes)
    except StorageFailure as error:
        # A folder store cannot tell which of the two files failed.
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _READ_ERRORS:
            await asyncio.to_thread(_check_readable, source)
        raise
    except OSError as error:
        raise _unreadable(error) from error


def _check_readable(file: FileIO) -> None:
    """Read all of an open file and drop it. Raises FileRefused if the disk cannot."""
    buffer, offset = bytearray(1 << 20), 0
    try:
        while count := os.preadv(file.fileno(), [buffer], offset):
            offset += count
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> FileRefused:
    return FileRefused(f"the disk cannot read it: {error.strerror}")
