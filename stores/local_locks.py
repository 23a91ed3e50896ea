"""Locks among all threads and processes that share a folder, which nobody can keep for ever.

A lock is `flock` on a file, so the kernel drops it when its holder dies, however it dies. But a
frozen worker does not die, and moves again when it likes. So nobody changes an object but with the
*pen* of a lock, and a pen can be taken away:

- A pen is a name in the folder `pens` that tells the lock it belongs to: `3f.1.<token>` is one of
  lock `3f`, the second of that name. A file is written by renaming the pen to it, and removed by
  renaming it into the pen, which is a folder then. Once the pen is gone, either fails.
- Who has waited for a lock for too long closes it, by making the next one of its name.
- A holder makes its pen first and looks then whether its lock is closed. So one who saw it open had
  a pen before it was closed,
- and who holds the next lock removes the pens of all before it, before it reads anything. A rename
  that came first is seen; one that comes after has nothing to rename.

Not held: names that others make must be seen at once. A mount that remembers what is *not* there,
as NFS may, needs that turned off (`lookupcache=positive`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: A lock is kept for a millisecond. For so long it is waited for; a record's lease lasts longer.
LOCK_SECONDS = 5.0


class Locks:
    """The locks in a folder, by their names."""

    def __init__(self, folder: Path, pens: Path) -> None:
        """Both folders must exist when a lock is taken, and lie on one filesystem."""
        self._folder = folder
        self._pens = pens
        #: Which lock of a name is the newest that was held here; the pens of older ones are gone.
        self._newest: dict[str, int] = {}

    @contextmanager
    def held(self, name: str, make_pen: Callable[[Path], object]) -> Iterator[Path]:
        """Alone with this name. Yields the pen, which `make_pen` puts where it is told to.

        Raises:
            StorageUnavailable: others went on without this holder, for they waited too long.
        """
        descriptor, number = self._lock(name)
        pen = self._pens / f"{name}.{number}.{secrets.token_hex(12)}"
        try:
            make_pen(pen)
            if self._path(name, number + 1).exists():
                raise left_behind()
            self._take_pens(name, number)
            yield pen
        finally:
            os.close(descriptor)
            _take_away(pen)

    def _lock(self, name: str) -> tuple[int, int]:
        """The newest lock of that name: a descriptor that holds it, and its number."""
        number = self._newest.get(name, 0)
        while True:
            descriptor = os.open(self._path(name, number), os.O_CREAT | os.O_RDWR, 0o666)
            try:
                if _locked(descriptor, unless=self._path(name, number + 1)):
                    return descriptor, number
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            number += 1  # making that one closes this one

    def _path(self, name: str, number: int) -> Path:
        return self._folder / (f"{name}.{number}" if number else name)

    def _take_pens(self, name: str, number: int) -> None:
        """Those of closed locks, once: nobody makes another and goes on to use it."""
        if self._newest.get(name, 0) < number:
            for pen in self._pens.glob(f"{name}.*.*"):
                if int(pen.name.split(".")[1]) < number:
                    _take_away(pen)
            self._newest[name] = number


def left_behind() -> StorageUnavailable:
    """For a holder whose pen others took away."""
    return StorageUnavailable("this worker stood still in mid-write, and others went on without it")


def _locked(descriptor: int, *, unless: Path) -> bool:
    """Wait for the lock. False: it is closed, or shall be."""
    deadline, pause = time.monotonic() + LOCK_SECONDS, 0.001
    while not unless.exists():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        else:
            return True
        time.sleep(pause * random.random())  # noqa: S311 - spreads the waiters, keeps no secret
        pause = min(pause * 2, 0.03)
    return False


def _take_away(pen: Path) -> None:
    """Once this returns, the pen is gone or was used before. A file or an empty folder."""
    try:
        pen.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):  # the latter is what macOS says of a folder
        try:
            pen.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else it was used
                raise
