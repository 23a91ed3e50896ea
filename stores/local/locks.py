"""Locks among all threads and processes that share a folder, which nobody can keep for ever.

A lock is `flock` on a file, so the kernel drops it when its holder dies, however it dies. But a
frozen worker does not die, and moves again when it likes. So nobody changes an object but with the
*pen* of a lock, and a pen can be taken away:

- A pen is a name in the folder `pens` that tells the lock it belongs to: `3f.1.<token>` is one of
  lock `3f`, the second of that name. A file is written by renaming the pen to it, and removed by
  renaming it into the pen, which is a folder then. Once the pen is gone, either fails.
- Who waits for a lock whose holder does not move closes it, by making the next one of its name.
- A holder makes its pen first and looks then whether its lock is closed. So one who saw it open had
  a pen before it was closed,
- and who holds the next lock removes the pens of all before it, before it reads anything. A rename
  that came first is seen; one that comes after has nothing to rename.

Not held: names that others make must be seen at once. A mount that remembers what is *not* there,
as NFS may, needs that turned off (`lookupcache=positive`). And the server must not drop the lock
of a machine that it lost sight of, and give the same one away: a frozen one of *that* lock keeps
its pen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from storage import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: A lock is kept for a millisecond. Who waits for so long begins to watch its holder, and takes one
#: that does not move for so long for frozen; a record's lease lasts longer.
LOCK_SECONDS = 2.5


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
            StorageUnavailable: others went on without this holder, who stood still.
        """
        descriptor, pen = self._hold(name, make_pen)
        try:
            yield pen
        finally:
            os.close(descriptor)
            _take_away(pen)

    def _hold(self, name: str, make_pen: Callable[[Path], object]) -> tuple[int, Path]:
        number = self._newest.get(name, 0)
        while True:
            descriptor, number = self._lock(name, number)
            pen = self._pens / f"{name}.{number}.{secrets.token_hex(12)}"
            try:
                make_pen(pen)
                if not self._path(name, number + 1).exists():
                    self._take_pens(name, number)
                    return descriptor, pen
            except BaseException:
                os.close(descriptor)
                _take_away(pen)
                raise
            os.close(descriptor)
            number, make_pen = number + 1, partial(_rename, pen)

    def _lock(self, name: str, number: int) -> tuple[int, int]:
        """The newest lock of that name from `number` on: its descriptor, and which it is."""
        while True:
            descriptor = os.open(self._path(name, number), os.O_CREAT | os.O_RDWR, 0o666)
            try:
                if self._locked(descriptor, name, number):
                    return descriptor, number
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            number += 1  # making that one closes this one

    def _locked(self, descriptor: int, name: str, number: int) -> bool:
        """Wait for the lock. False: it is closed, or shall be, for its holder does not move."""
        began, pause, before, since = time.monotonic(), 0.001, None, 0.0
        while not self._path(name, number + 1).exists():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if (now := time.monotonic()) - began > LOCK_SECONDS:
                    # From here on it is watched. It may be who waits, or the disk, that stood
                    # still; and holders that come one after the other have other pens.
                    if before != (pens := self._pens_of(name, number, number)):
                        before, since = pens, now
                    elif now - since > LOCK_SECONDS:
                        return False
            else:
                return True
            time.sleep(pause * random.random())  # noqa: S311 - spreads the waiters, no secret
            pause = min(pause * 2, 0.03)
        return False

    def _path(self, name: str, number: int) -> Path:
        return self._folder / (f"{name}.{number}" if number else name)

    def _take_pens(self, name: str, number: int) -> None:
        """Those of closed locks, once: nobody makes another and goes on to use it."""
        if self._newest.get(name, 0) < number:
            for pen in self._pens_of(name, 0, number - 1):
                _take_away(self._pens / pen)
            self._newest[name] = number

    def _pens_of(self, name: str, first: int, last: int) -> set[str]:
        """Those of its locks from `first` to `last`."""
        pens = set()
        for file in os.listdir(self._pens):  # noqa: PTH208 - a glob hides that it may not read
            match file.split("."):
                case [stem, digits, _] if stem == name and digits.isdigit():
                    if first <= int(digits) <= last:
                        pens.add(file)
        return pens


def left_behind() -> StorageUnavailable:
    """For a holder whose pen others took away."""
    return StorageUnavailable("this worker stood still in mid-write, and others went on without it")


def _rename(old: Path, new: Path) -> None:
    try:
        old.replace(new)
    except FileNotFoundError:
        raise left_behind() from None


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
