"""The files of an attempt, read and removed by a worker that does not trust them.

A job controls its folder: it may lay links, pipes and devices in it, and swap anything at any
time. The rule is that the worker reads and writes nothing outside the attempt's own folder, and
never waits for a file:

- Every path is resolved below a descriptor that is held open since before the job began, and no
  part of it may be a link.
- Only regular files are read. That is checked before the file is opened, because opening a device
  may have an effect, and after, because only then it cannot change any more.
- A file with several names (hard links) is read only if all of its names lie in the attempt's
  folder. A link to a file from elsewhere leaves at least one name outside.
- A folder is removed without following links, however deep it is.

All calls block and belong in a thread.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Final, NamedTuple

from records.record import RefusedFile
from worker.beneath import (
    FOLDER_FLAGS,
    FileRefused,
    empty_folder,
    ignore,
    open_folder,
    refusing,
    remove_tree,
    walk,
)
from worker.workplace import Workplace

#: Entries that are listed with their reasons; the others are only counted.
MAX_REFUSED_LISTED: Final = 50
#: Characters of a refused path that are shown.
MAX_REFUSED_PATH: Final = 200
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SECOND_NAME: Final = "it is a hard link to a file outside of the attempt's folder"
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


class Refusals:
    """Entries that are left behind: all are counted, the first ones are listed with reasons."""

    def __init__(self) -> None:
        self.count = 0
        self._listed: dict[str, RefusedFile] = {}

    def add(self, path: str, reason: str) -> None:
        if path in self._listed:
            return
        self.count += 1
        if len(self._listed) < MAX_REFUSED_LISTED:
            self._listed[path] = RefusedFile(path=printable(path), reason=reason)

    @property
    def listed(self) -> tuple[RefusedFile, ...]:
        return tuple(self._listed.values())


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

    def open(self, path: str, names: Mapping[Inode, int] | None = None) -> FileIO:
        """The regular file at `path`, opened for reading. Close it.

        `names` is what `names` returned when nothing could change it any more; None: look now.

        Raises:
            FileRefused: it is none, a link leads to it, or it has a name outside of this folder.
            FileNotFoundError: there is no such file.
        """
        above, _, name = path.rpartition("/")
        with refusing(), self._folder(above) as folder:
            _check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
            file = FileIO(os.open(name, _FILE, dir_fd=folder))
        try:
            self._check(file, names)
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
        with self._folder("") as held, suppress(FileExistsError):
            os.mkdir(folder, dir_fd=held)
        with refusing(), self._folder(folder) as opened:
            descriptor = os.open(name, _NEW_FILE, 0o666, dir_fd=opened)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def remove(self, path: str) -> None:
        """Remove a file or folder, if it is there and no link leads to it."""
        above, _, name = path.rpartition("/")
        with suppress(OSError), self._folder(above) as folder:
            remove_tree(name, folder)

    def listing(self, path: str) -> FolderListing:
        """What lies below the folder `path`, by paths relative to it; empty if it is missing."""
        files, refused, linked = [], Refusals(), False
        with self._folder("") as held:
            for entry in walk(held, path, refused.add):
                if reason := _odd(entry.facts):
                    refused.add(entry.path, reason)
                else:
                    files.append(entry.path)
                    linked = linked or entry.facts.st_nlink > 1
        return FolderListing(sorted(files), refused, linked)

    def names(self) -> Counter[Inode]:
        """How many names each file with several of them has in this folder."""
        with self._folder("") as held:
            found = {
                (_inode(entry.facts), entry.parent, entry.path.rpartition("/")[2])
                for entry in walk(held, "", ignore)
                if entry.facts.st_nlink > 1
            }
        return Counter(inode for inode, _, _ in found)

    def _check(self, file: FileIO, names: Mapping[Inode, int] | None) -> None:
        facts = os.fstat(file.fileno())
        _check_regular(facts)
        if facts.st_nlink > 1:
            names = self.names() if names is None else names
            # A name that moves while names are counted may be counted twice; it changes the ctime.
            moved = os.fstat(file.fileno()).st_ctime_ns != facts.st_ctime_ns
            if moved or names.get(_inode(facts), 0) < facts.st_nlink:
                raise FileRefused(_SECOND_NAME)

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """A descriptor of a folder in here, which `discard` in another thread does not close."""
        with self._turn:
            if self._descriptor is None:
                raise FileNotFoundError(errno.ENOENT, "the attempt's folder is not there")
            opened = open_folder(self._descriptor, path)
        try:
            yield opened
        finally:
            os.close(opened)


def printable(path: str) -> str:
    """`path` for a person and for JSON: odd characters as escapes, cut; the folder itself is `.`"""
    text = path.encode(errors="backslashreplace").decode() or "."
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= MAX_REFUSED_PATH else f"{text[: MAX_REFUSED_PATH - 1]}…"


def _odd(facts: os.stat_result) -> str | None:
    """Why it is not read; None for a regular file."""
    kind = stat.S_IFMT(facts.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "it is no regular file")


def _check_regular(facts: os.stat_result) -> None:
    if reason := _odd(facts):
        raise FileRefused(reason)


def _inode(facts: os.stat_result) -> Inode:
    return facts.st_dev, facts.st_ino
