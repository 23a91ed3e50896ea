"""The files of an attempt, read and removed by a worker that does not trust them.

A job controls its folder: it may lay links, pipes and devices in it, and swap anything at any
time. The rule is that the worker reads and writes nothing outside the attempt's own folder, and
never waits for a file:

- Every path is resolved below a descriptor that is held open since before the job began, and no
  part of it may be a link.
- Only regular files are read. That is checked before the file is opened, because opening a device
  may have an effect, and after, because only then it cannot change any more.
- A file with several names (hard links) is read only if a count finds all of its names in the
  attempt's folder. A link to a file from elsewhere leaves at least one name outside. While the job
  lives, a name that moves may be counted twice, so a count then holds only for files whose names
  have not changed since shortly before it began, by their ctime.
- A folder is removed without following links, however deep it is.

All calls block and belong in a thread.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from child.names import shown
from records.record import RefusedFile
from utils import CLOCK_TICK_SECONDS
from worker.beneath import (
    FOLDER_FLAGS,
    FileRefused,
    empty_folder,
    ignore,
    made_folder,
    open_folder,
    refusing,
    remove_tree,
    walk,
)
from worker.workplace import Workplace

#: Entries that are listed with their reasons; the others are only counted.
MAX_REFUSED_LISTED: Final = 50
#: Refused paths that are remembered, so that one that is refused again is not counted again.
MAX_REFUSED_KNOWN: Final = 10_000
#: Characters of a refused path that are shown.
MAX_REFUSED_PATH: Final = 200
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SECOND_NAME: Final = "it is a hard link to a file outside of the attempt's folder"
_CLOCK_TICK_NS: Final = int(CLOCK_TICK_SECONDS * 1e9)
_KINDS: Final = {
    stat.S_IFLNK: "it is a link",
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFBLK: "it is a device",
    stat.S_IFCHR: "it is a device",
}

#: A file, whatever its names are: device and inode.
Inode = tuple[int, int]


class NameCount(NamedTuple):
    """How many names files have in the attempt's folder; files with one name may be missing."""

    names: Mapping[Inode, int]
    #: It holds for files whose names have not changed since then; None: no process changes any.
    unchanged_since_ns: int | None

    def holds_all_names(self, facts: os.stat_result) -> bool:
        """Whether all names of a file are known to be inside, by its facts after the count."""
        changed = self.unchanged_since_ns is not None and (
            facts.st_ctime_ns >= self.unchanged_since_ns
        )
        return not changed and self.names.get(_inode(facts), 0) >= facts.st_nlink


#: For files of which none has several names.
NO_LINKS: Final = NameCount({}, None)


class FileWaits(OSError):
    """A file that can be read only once the job has ended; its text is a reason for people."""

    def __init__(self) -> None:
        super().__init__(errno.EBUSY, "it has several names and waits for the end of the job")

    def __str__(self) -> str:
        return str(self.strerror)


class Refusals:
    """Entries that are left behind: all are counted, the first ones are listed with reasons."""

    def __init__(self) -> None:
        self.count = 0
        self._known: set[str] = set()
        self._listed: list[RefusedFile] = []

    def add(self, path: str, reason: str) -> None:
        if path in self._known:
            return
        self.count += 1
        if len(self._known) < MAX_REFUSED_KNOWN:
            self._known.add(path)
        if len(self._listed) < MAX_REFUSED_LISTED:
            self._listed.append(RefusedFile(path=printable(path), reason=reason))

    @property
    def listed(self) -> tuple[RefusedFile, ...]:
        return tuple(self._listed)


class FolderListing(NamedTuple):
    """What lies below a folder."""

    #: Paths of regular files, sorted.
    files: list[str]
    refused: Refusals
    #: Whether one of the files has several names.
    linked: bool


class OwnFolder:
    """The folder of an attempt, held open from `make` to `discard`. Paths are relative to it."""

    def __init__(self, workplace: Workplace, name: str) -> None:
        """Makes nothing yet."""
        self.path = workplace.folder / name
        self._workplace = workplace
        self._descriptor: int | None = None
        self._turn = threading.Lock()

    def make(self) -> None:
        """Make it in the workplace. Raises OSError, also if that is no longer where it was."""
        self._workplace.claim()
        within = self._workplace.descriptor
        os.mkdir(self.path.name, dir_fd=within)
        self._descriptor = os.open(self.path.name, FOLDER_FLAGS, dir_fd=within)
        if not os.path.samestat(os.fstat(self._descriptor), self.path.stat()):
            raise OSError(errno.ESTALE, "the worker's folder was moved or replaced")

    def discard(self) -> None:
        """Remove and close it. Idempotent; content that a disk does not remove stays.

        The open folder is emptied before its name is removed: a job may have renamed it.
        """
        with self._turn:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            with suppress(OSError):
                os.fchmod(descriptor, 0o700)
                empty_folder(descriptor)
        finally:
            os.close(descriptor)
        remove_tree(self.path.name, self._workplace.descriptor)

    def open(self, path: str, count: NameCount | None = None) -> FileIO:
        """The regular file at `path`, opened for reading. Close it.

        `count` tells where files with several names have them; None: it is too early to tell.

        Raises:
            FileRefused: it is none, a link leads to it, or it has a name outside of this folder.
            FileWaits: it has several names and there is no count.
            FileNotFoundError: there is no such file.
        """
        above, _, name = path.rpartition("/")
        with refusing(), self._folder(above) as folder:
            _check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
            file = FileIO(os.open(name, _FILE, dir_fd=folder))
        try:
            _check_open(file, count)
        except BaseException:
            file.close()
            raise
        return file

    def read(self, path: str, size: int) -> bytes:
        """The content of a file that has `size` bytes. Raises OSError if it has not."""
        with self.open(path) as file:
            data = file.read(size + 1)
        if len(data) != size:
            raise OSError(errno.EIO, "it was changed")
        return data

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Make the file `name` in `folder`, which is made if it is missing. Raises OSError."""
        with self._made(folder) as opened, refusing():
            descriptor = os.open(name, _NEW_FILE, 0o666, dir_fd=opened)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    @contextmanager
    def target(self, path: str) -> Iterator[Path]:
        """Yields the path at which to write the file `path`; makes missing folders.

        The path leads through the open folder that the file belongs in (`/proc/self/fd`), so a link
        that takes the place of a folder meanwhile diverts nothing. Writers make new files beside it
        and rename them, and so follow no link in its last part either. Raises OSError, FileRefused.
        """
        above, _, name = path.rpartition("/")
        with self._made(above) as folder:
            yield Path(f"/proc/self/fd/{folder}", name)

    def remove(self, path: str) -> None:
        """Remove a file or folder, if it is there and no link leads to it."""
        above, _, name = path.rpartition("/")
        with suppress(OSError), self._folder(above) as folder:
            remove_tree(name, folder)

    def listing(self, path: str, most: int) -> FolderListing:
        """What lies below the folder `path`, by paths relative to it; empty if it is missing.

        Beyond the first `most` files, all are refused.
        """
        files: list[str] = []
        refused, linked = Refusals(), False
        with self._folder("") as held:
            for entry in walk(held, path, refused.add):
                if reason := _odd(entry.facts):
                    refused.add(entry.path, reason)
                elif len(files) == most:
                    refused.add(entry.path, f"there are more than {most} files")
                else:
                    files.append(entry.path)
                    linked = linked or entry.facts.st_nlink > 1
        return FolderListing(sorted(files), refused, linked)

    def names_while_job_lives(self) -> NameCount:
        """Count the names of files in this folder, for those whose names stand still.

        Waits first, so that names that the job made before this call stand still long enough.
        """
        time.sleep(2 * _CLOCK_TICK_NS / 1e9)
        with self._folder("") as held:
            os.utime(held)  # asks the clock of the file system, which stamps ctimes
            began = os.fstat(held).st_ctime_ns
        return NameCount(self._counted(), unchanged_since_ns=began - _CLOCK_TICK_NS)

    def names_at_end(self) -> NameCount:
        """Count the names of files in this folder, once no process of the job lives."""
        return NameCount(self._counted(), unchanged_since_ns=None)

    def _counted(self) -> Counter[Inode]:
        with self._folder("") as held:
            found = {
                (_inode(entry.facts), entry.parent, entry.path.rpartition("/")[2])
                for entry in walk(held, "", ignore)
                if entry.facts.st_nlink > 1
            }
        return Counter(inode for inode, _, _ in found)

    def _folder(self, path: str) -> AbstractContextManager[int]:
        """A descriptor of a folder in here."""
        return self._opened(open_folder, path)

    def _made(self, path: str) -> AbstractContextManager[int]:
        """Like `_folder`, but makes missing folders."""
        return self._opened(made_folder, path)

    @contextmanager
    def _opened(self, opens: Callable[[int, str], int], path: str) -> Iterator[int]:
        """A descriptor that `discard` in another thread does not close."""
        with self._turn:
            if self._descriptor is None:
                raise FileNotFoundError(errno.ENOENT, "the attempt's folder is not there")
            opened = opens(self._descriptor, path)
        try:
            yield opened
        finally:
            os.close(opened)


def printable(path: str) -> str:
    """`path` as callers see it, cut; the folder itself is `.`"""
    text = shown(path) or "."
    return text if len(text) <= MAX_REFUSED_PATH else f"{text[: MAX_REFUSED_PATH - 1]}…"


def _odd(facts: os.stat_result) -> str | None:
    """Why it is not read; None for a regular file."""
    kind = stat.S_IFMT(facts.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "it is no regular file")


def _check_regular(facts: os.stat_result) -> None:
    if reason := _odd(facts):
        raise FileRefused(reason)


def _check_open(file: FileIO, count: NameCount | None) -> None:
    facts = os.fstat(file.fileno())
    _check_regular(facts)
    if facts.st_nlink > 1:
        if count is None:
            raise FileWaits
        if not count.holds_all_names(facts):
            raise FileRefused(_SECOND_NAME)


def _inode(facts: os.stat_result) -> Inode:
    return facts.st_dev, facts.st_ino
