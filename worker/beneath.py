"""Opens, walks and removes folders below an open folder, and never follows a link.

A path is resolved below a descriptor: by `openat2` with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS
where the kernel has it, one component at a time elsewhere. All calls block.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from child.names import MAX_PATH_BYTES

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPENAT2: Final = 437  # the same on every architecture
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_HOW: Final = struct.pack("=QQQ", FOLDER_FLAGS, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
_TOO_LONG: Final = "its path is too long"
_ON_THE_WAY: Final = "a folder of its path is a link, or is no folder"
_REASONS: Final = {
    errno.ELOOP: _ON_THE_WAY,
    errno.ENOTDIR: _ON_THE_WAY,
    errno.ENAMETOOLONG: _TOO_LONG,
    errno.EACCES: "the worker may not read it",
    errno.EPERM: "the worker may not read it",
    errno.EAGAIN: "another process holds it",
    errno.EIO: "the disk cannot read it",
    errno.ESTALE: "the disk cannot read it",
    errno.EUCLEAN: "the disk cannot read it",
}


class FileRefused(OSError):
    """An entry that the worker does not touch; its text is a reason for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class Entry(NamedTuple):
    """A directory entry that is not a folder."""

    path: str
    #: Inode of the folder that it lies in.
    parent: int
    facts: os.stat_result


def open_folder(folder: int, path: str) -> int:
    """A descriptor of the folder `path` below `folder`. Raises OSError, FileRefused."""
    parts = [part for part in path.split("/") if part]
    if {".", ".."} & set(parts):
        raise FileRefused(_ON_THE_WAY)
    opens = _open_at_once if has_openat2() else _open_by_parts
    with refusing():
        return opens(folder, parts)


def made_folder(folder: int, path: str) -> int:
    """A descriptor of the folder `path` below `folder`; missing folders are made.

    Raises OSError, FileRefused.
    """
    try:
        return open_folder(folder, path)
    except FileNotFoundError:
        above, _, name = path.rpartition("/")
        parent = made_folder(folder, above)
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            return open_folder(parent, name)
        finally:
            os.close(parent)


@cache
def has_openat2() -> bool:
    """Whether the kernel has `openat2` (Linux 5.6) and no seccomp filter refuses it."""
    with suppress(OSError), opened(Path("/")) as root:
        os.close(_open_at_once(root, []))
        return True
    return False


def _open_at_once(folder: int, parts: list[str]) -> int:
    path = os.fsencode("/".join(parts) or ".")
    libc = ctypes.CDLL(None, use_errno=True)
    place, size = ctypes.c_long(folder), ctypes.c_size_t(len(_HOW))
    opened: int = libc.syscall(_OPENAT2, place, path, _HOW, size)
    if opened < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return opened


def _open_by_parts(folder: int, parts: list[str]) -> int:
    reached = os.dup(folder)
    for part in parts:
        above = reached
        try:
            reached = os.open(part, FOLDER_FLAGS, dir_fd=above)
        finally:
            os.close(above)
    return reached


def remove_tree(name: str, within: int) -> bool:
    """Remove a file, or a folder with its content, from the folder `within`.

    Returns whether nothing of it is left.
    """
    try:
        if not _is_folder(name, within):
            os.unlink(name, dir_fd=within)
            return True
        with _opened_by_owner(name, within) as folder:
            empty_folder(folder)
        os.rmdir(name, dir_fd=within)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def empty_folder(folder: int) -> None:
    """Remove the content of an open folder, as far as the disk allows it.

    Nested folders are moved up to `folder` and wait there for their turn, so no depth is too deep
    and a removal that is killed leaves nothing outside of `folder`.
    """
    waiting = os.listdir(folder)
    while waiting:
        name = waiting.pop()
        with suppress(OSError):
            if _is_folder(name, folder):
                _empty(name, folder, waiting)
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)


def tree_bytes(folder: int) -> int:
    """The bytes of all files below an open folder."""
    return sum(entry.facts.st_size for entry in walk(folder, "", ignore))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the folder at `path`. Raises OSError."""
    descriptor = os.open(path, FOLDER_FLAGS & ~os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(folder: int, root: str, refuse: Callable[[str, str], None]) -> Iterator[Entry]:
    """All that lies below `root` and is no folder, links included, by paths relative to `root`."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            for entry in _entries(folder, root, below):
                if len(os.fsencode(entry.path)) > MAX_PATH_BYTES:
                    refuse(entry.path, _TOO_LONG)
                elif stat.S_ISDIR(entry.facts.st_mode):
                    waiting.append(entry.path)
                else:
                    yield entry
        except FileNotFoundError:
            continue  # it was removed since
        except FileRefused as refused:
            refuse(below, str(refused))


def _entries(folder: int, root: str, below: str) -> Iterator[Entry]:
    opened = open_folder(folder, f"{root}/{below}")
    try:
        parent = os.fstat(opened).st_ino
        with refusing(), os.scandir(opened) as entries:
            for entry in entries:
                if facts := _facts(entry):
                    yield Entry(f"{below}/{entry.name}".lstrip("/"), parent, facts)
    finally:
        os.close(opened)


def _facts(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None: it was removed since."""
    with suppress(FileNotFoundError), refusing():
        return entry.stat(follow_symlinks=False)
    return None


def _is_folder(name: str, within: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)


def _empty(name: str, within: int, moved: list[str]) -> None:
    """Remove the files of a folder and move its folders up to `within`; append their names."""
    with _opened_by_owner(name, within) as folder:
        for path in os.listdir(folder):  # noqa: PTH208 - a descriptor has no Path
            with suppress(OSError):  # then the folder is not empty, and stays
                if _is_folder(path, folder):
                    _give_owner_access(path, folder)  # a folder without it cannot be moved
                    aside = f".{secrets.token_hex(8)}.removed"
                    os.rename(path, aside, src_dir_fd=folder, dst_dir_fd=within)
                    moved.append(aside)
                else:
                    os.unlink(path, dir_fd=folder)


@contextmanager
def _opened_by_owner(name: str, within: int) -> Iterator[int]:
    _give_owner_access(name, within)
    folder = os.open(name, FOLDER_FLAGS, dir_fd=within)
    try:
        yield folder
    finally:
        os.close(folder)


def _give_owner_access(name: str, within: int) -> None:
    """Set the mode of a folder to 0700, if the worker may.

    A folder of mode 000 cannot be opened for `fchmod`, and `chmod` by name would follow a link.
    """
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        with suppress(OSError):
            Path(f"/proc/self/fd/{place}").chmod(0o700)
    finally:
        os.close(place)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn the errors that odd entries cause into `FileRefused`."""
    try:
        yield
    except FileRefused:
        raise
    except OSError as error:
        if error.errno in _REASONS:
            raise FileRefused(_REASONS[error.errno]) from None
        raise


def ignore(_path: str, _reason: str) -> None:
    """Ignores a refused entry."""
