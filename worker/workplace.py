"""A folder of one worker, for attempts or for records, held for as long as the worker lives.

Workers on one machine may share a scratch disk. A lock on the folder distinguishes a live worker's
files from a dead one's; the kernel releases it on death. Age does not distinguish them: a job may
run for a week. Without file locks, every folder is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from utils import new_nonce

#: On the scratch disk: where all workers of this machine work, and where they keep records.
WORK, RECORDS = "work", "records"
#: The name of the folder in `RECORDS` for the workers of one store.
STORE_NAME = re.compile(r"[0-9a-f]{16}")
#: The name of a worker's folder.
FOLDER_NAME = re.compile(r"worker-[0-9a-f]{16}")
#: In a folder that could not be held. No attempt's folder begins with a dot.
NOT_HELD: Final = ".not-held"
#: What file systems answer that have no locks.
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Workplace:
    """A fresh folder below `parent`. Nothing is made before `claim`."""

    def __init__(self, parent: Path) -> None:
        self.folder = parent / f"worker-{new_nonce()}"
        self._turn = threading.Lock()
        self._claimed = False
        #: Once it is claimed: the folder, open for as long as this object lives.
        self.descriptor = -1

    def claim(self) -> None:
        """Make the folder and hold it until this process ends. Blocking. Raises OSError.

        Without locks it is marked as not to be judged by them.
        """
        with self._turn:
            while not self._claimed:
                self.folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    self._claimed = self._hold()

    def _hold(self) -> bool:
        """False: it was taken for an abandoned one and removed between its making and its lock."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lock(handle)
            held = self.folder.exists()
        except OSError:
            os.close(handle)
            raise
        if not held:
            os.close(handle)
            return False
        self.descriptor = handle
        self._let_go = weakref.finalize(self, os.close, handle)
        return True

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            (self.folder / NOT_HELD).touch()


@contextmanager
def held_if_abandoned(folder: Path, within: int | None = None) -> Iterator[bool]:
    """Yields whether the folder is abandoned, and keeps it locked for the block.

    A relative `folder` lies in the open folder `within`. Raises OSError, also for a link.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)
    try:
        yield _locked(handle) and not _is_marked(handle)
    finally:
        os.close(handle)


def _is_marked(handle: int) -> bool:
    try:
        os.stat(NOT_HELD, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
