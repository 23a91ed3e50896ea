"""Unpack the archives among a job's inputs, before the job runs. Child only.

An archive that turns out to be a bomb takes down, at worst, the child that unpacks it; and what
ends a job, a cancel or a time-out, ends its unpacking too.
"""

from __future__ import annotations

import errno
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from child.context import JobContext, JobFailed, JobStopped
from child.packed import Member, read_archive

#: Of all archives of an attempt together; folders count as well, also those only implied.
MAX_FILES: Final = 100_000
#: What a full disk says, and a full quota: another worker's may have room.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Unpacked(NamedTuple):
    """What an archive took of the limits."""

    #: Files and folders, as `max_files` counts them.
    files: int
    #: Of all files together, in bytes.
    size: int


def unpack_inputs(context: JobContext, names: Iterable[str], max_bytes: int) -> None:
    """Put a folder of the same name in the place of each archive among the inputs.

    `max_bytes` and MAX_FILES are for all of them together. Raises as `unpack` does.
    """
    max_files = MAX_FILES
    aside = context.inputs.with_name("packed")
    aside.mkdir()
    for name in names:
        archive = (context.inputs / name).rename(aside / name)
        taken = unpack(
            archive,
            context.inputs / name,
            max_bytes=max_bytes,
            max_files=max_files,
            on_file=partial(_tell, context, name),
            should_stop=context.should_stop,
        )
        archive.unlink()
        max_bytes -= taken.size
        max_files -= taken.files
    aside.rmdir()


def _tell(context: JobContext, name: str, files: int) -> None:
    if files % 100 == 0:
        context.progress(0, message=f"unpacking {name}: {files} files")


def unpack(
    archive: Path,
    target: Path,
    *,
    max_bytes: int,
    max_files: int,
    on_file: Callable[[int], None] = lambda _files: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Unpacked:
    """Unpack a zip, or a tar that may be compressed by gzip, bzip2 or xz, into the new `target`.

    Its content tells what it is. Files get mode 0644 and folders 0755; whatever else it says about
    them is ignored. `on_file` hears, at each file, how many there are by then.

    Raises JobFailed: input_unsafe, input_too_large, input_broken, input_not_stored; JobStopped once
    `should_stop` is true. Then `target` is gone again. Raises FileExistsError when it is there
    beforehand.
    """
    _make_folder(target)
    tree = _Tree(target, max_bytes, max_files, should_stop)
    files = 0
    try:
        for member in read_archive(archive, max_files):
            tree.add(member)
            if not member.folder:
                files += 1
                on_file(files)
    except JobFailed as error:
        shutil.rmtree(target)
        raise JobFailed(error.code, f"{archive.name!r} cannot be unpacked. {error}") from error
    except BaseException as error:
        shutil.rmtree(target)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise JobFailed("input_not_stored", _no_room(archive, tree), retryable=True) from error
        raise
    return Unpacked(tree.files, tree.size)


def _no_room(archive: Path, tree: _Tree) -> str:
    return f"{archive.name!r} cannot be unpacked. The disk is full after {tree.size} bytes of it."


class _Tree:
    """What is unpacked so far."""

    def __init__(
        self, root: Path, max_bytes: int, max_files: int, should_stop: Callable[[], bool]
    ) -> None:
        self.files = 0
        self.size = 0
        self._root = root
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._should_stop = should_stop
        #: Each path and whether it is a folder, by what it reads like: an accented letter may be
        #: one character or two, and two files that look the same were made to mislead somebody.
        self._made: dict[str, tuple[PurePosixPath, bool]] = {}

    def add(self, member: Member) -> None:
        """Write a member and the folders above it. Raises JobFailed, JobStopped."""
        self._count()
        path = PurePosixPath(member.name)
        if not path.parts and not member.folder:
            raise JobFailed("input_unsafe", "One of its files has no name.")
        for folder in reversed(path.parents):
            if self._is_new(folder, folder=True):
                self._count()
                _make_folder(self._root / folder)
        if self._is_new(path, folder=member.folder):
            if member.folder:
                _make_folder(self._root / path)
            else:
                self._write(self._root / path, member.chunks)

    def _count(self) -> None:
        if self._should_stop():
            raise JobStopped
        self.files += 1
        if self.files > self._max_files:
            raise JobFailed(
                "input_too_large", f"It has more than the {self._max_files} files allowed."
            )

    def _is_new(self, path: PurePosixPath, *, folder: bool) -> bool:
        """False for a folder that was made before. Raises JobFailed for what had its name."""
        if not path.parts:
            return False  # the target itself
        key = unicodedata.normalize("NFC", str(path))
        made = self._made.get(key)
        if made is None:
            self._made[key] = (path, folder)
            return True
        if folder and made == (path, True):
            return False
        raise JobFailed("input_unsafe", f"Two of its members have the name {str(path)[:200]!r}.")

    def _write(self, path: Path, chunks: Iterator[bytes]) -> None:
        with path.open("xb") as file:
            os.fchmod(file.fileno(), 0o644)
            for chunk in chunks:
                if self._should_stop():
                    raise JobStopped
                self.size += len(chunk)
                if self.size > self._max_bytes:
                    raise JobFailed(
                        "input_too_large",
                        f"Its files have more than the {self._max_bytes} bytes allowed.",
                    )
                file.write(chunk)


def _make_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)
