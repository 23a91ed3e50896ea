"""Locks among all threads and processes that share a folder. No holder keeps one for ever.

A lock is `flock` on a file, so the kernel releases it when its holder dies. A frozen worker does
not die and may go on at any time. So an object is changed only by way of a *claim*, and others can
take a claim away:

- A claim is a name in the folder `writing` that begins with the name of its lock: `3f.1.<token>`
  belongs to lock `3f`, the second of that name. Renaming the claim to a file writes that file;
  renaming the file into the claim, which is a folder then, removes it. Once the claim is gone,
  both renames fail.
- A waiter closes a lock whose holder does not move by making the next lock of its name.
- A holder first makes its claim and then checks that its lock is open. So a holder that found it
  open had made its claim before the lock was closed.
- The holder of the next lock removes the claims of all earlier locks before it reads anything. It
  sees the effect of a rename that came first; a later rename finds no claim.

Two assumptions are not checked. A name that another machine makes must be seen at once: on NFS,
which may remember that a name is missing, set `lookupcache=positive`. And the server must not
release the lock of a machine that it lost sight of and then grant the same lock again.
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
#: A link in the place of a lock is not followed, or it would make a file elsewhere.
_FLAGS = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Locks:
    """The locks in a folder, by their names."""

    def __init__(self, folder: Path, claims: Path) -> None:
        """Both folders must exist when a lock is taken, and lie on one filesystem."""
        self._folder = folder
        self._claims = claims
        #: Which lock of a name is the newest that was held here; the claims of older ones are gone.
        self._newest: dict[str, int] = {}

    @contextmanager
    def held(self, name: str, make_claim: Callable[[Path], object]) -> Iterator[Path]:
        """Hold the lock of this name. Yields the claim, which `make_claim` makes at a given path.

        Raises:
            StorageUnavailable: others went on without this holder, who stood still.
        """
        descriptor, claim = self._hold(name, make_claim)
        try:
            yield claim
        finally:
            os.close(descriptor)
            _take_away(claim)

    def _hold(self, name: str, make_claim: Callable[[Path], object]) -> tuple[int, Path]:
        number = self._newest.get(name, 0)
        while True:
            descriptor, number = self._lock(name, number)
            claim = self._claims / f"{name}.{number}.{secrets.token_hex(12)}"
            try:
                make_claim(claim)
                if not self._path(name, number + 1).exists():
                    self._take_claims(name, number)
                    return descriptor, claim
            except BaseException:
                os.close(descriptor)
                _take_away(claim)
                raise
            os.close(descriptor)
            number, make_claim = number + 1, partial(_rename, claim)

    def _lock(self, name: str, number: int) -> tuple[int, int]:
        """The newest lock of that name from `number` on: its descriptor, and which it is."""
        while True:
            descriptor = os.open(self._path(name, number), _FLAGS, 0o666)
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
                    # still; and holders that come one after the other have other claims.
                    if before != (claims := self._claims_of(name, number, number)):
                        before, since = claims, now
                    elif now - since > LOCK_SECONDS:
                        return False
            else:
                return True
            time.sleep(pause * random.random())  # noqa: S311 - spreads the waiters, no secret
            pause = min(pause * 2, 0.03)
        return False

    def _path(self, name: str, number: int) -> Path:
        return self._folder / (f"{name}.{number}" if number else name)

    def _take_claims(self, name: str, number: int) -> None:
        """Those of closed locks, once: nobody makes another and goes on to use it."""
        if self._newest.get(name, 0) < number:
            for claim in self._claims_of(name, 0, number - 1):
                _take_away(self._claims / claim)
            self._newest[name] = number

    def _claims_of(self, name: str, first: int, last: int) -> set[str]:
        """Those of its locks from `first` to `last`."""
        claims = set()
        for file in os.listdir(self._claims):  # noqa: PTH208 - a glob hides that it may not read
            match file.split("."):
                case [stem, digits, _] if stem == name and digits.isdigit():
                    if first <= int(digits) <= last:
                        claims.add(file)
        return claims


def left_behind() -> StorageUnavailable:
    """The error of a holder whose claim was taken away."""
    return StorageUnavailable("this worker stood still in mid-write, and others went on without it")


def _rename(old: Path, new: Path) -> None:
    try:
        old.replace(new)
    except FileNotFoundError:
        raise left_behind() from None


def _take_away(claim: Path) -> None:
    """Once this returns, the claim is gone or was used before. A file or an empty folder."""
    try:
        claim.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):  # the latter is what macOS says of a folder
        try:
            claim.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else it was used
                raise
