"""The files of a running program: which are finished, which go out, which to resume from.

Links are not followed and nothing outside the attempt's own folders is looked at. Copies are made
for a program that may have laid links on the way: the caller confines them to the attempt's folder
(`child.confine`); where the kernel cannot, the look before each copy is all that there is.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from child.context import JobContext, JobFailed
from programs.declaration import Base, Checkpoints, FilePlace, Output, place_of
from utils import CLOCK_TICK_SECONDS

#: With more files than this in one of its folders a program fails: each look takes seconds then.
FILES_LIMIT = 50_000
#: An output that has not changed for so long is offered, in seconds.
SETTLE_SECONDS = 2.0
#: The folder below `checkpoints` in which one is made ready to be handed over.
HANDED = ".handed"

Folders = Mapping[Base, Path]


class _Facts(NamedTuple):
    """How a file looked; different means changed."""

    size: int
    modified_ns: int
    file: int


Files = dict[str, _Facts]


class Settling:
    """Tells what has looked the same for a while, by this machine's own clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[str, tuple[object, float]] = {}

    def settled(self, name: str, look: object) -> bool:
        """Whether `name` has looked so at every call for long enough."""
        now = time.monotonic()
        before, since = self._since.get(name, (None, now))
        if before != look:
            since = now
            self._since[name] = (look, since)
        return now - since >= self._seconds


class OutputFiles:
    """What a program makes, on its way into the attempt's outputs."""

    def __init__(self, context: JobContext, folders: Folders, declared: tuple[Output, ...]) -> None:
        self._context = context
        self._folders = folders
        self._root = context.outputs.resolve()  # before the program can lay a link
        self._places = [place_of(output.path) for output in declared]
        self._required = [output.required for output in declared]
        self._settling = Settling(SETTLE_SECONDS)
        self._offered: dict[str, _Facts] = {}
        #: What was brought from elsewhere, by its path in the outputs.
        self._brought: set[str] = set()

    def offer_finished(self) -> None:
        """Offer for download what has settled since the last look, and is new or changed."""
        for place in self._elsewhere():
            for path, facts in files_at(self._folders, place).items():
                if self._settling.settled(f"{place.base}/{path}", facts):
                    with suppress(OSError):  # it is gone again
                        self._bring(self._folders[place.base] / path, path)
        for path, facts in files_at(self._folders, FilePlace("outputs", "*")).items():
            if self._offered.get(path) != facts and self._settling.settled(path, facts):
                self._offered[path] = facts
                with suppress(OSError):
                    self._context.artifact(self._context.outputs / path)

    def collect(self) -> int:
        """When the program has ended well: bring everything; the number of artifacts.

        Raises:
            JobFailed: a declared output is not there or cannot be brought (`output_missing`), or
                two would be one (`output_collision`), or there are too many (`too_many_files`).
        """
        for place, required in zip(self._places, self._required, strict=True):
            if required and not files_at(self._folders, place):
                where = f"{place.glob!r} in its folder {place.base!r}"
                sentence = f"The program ended with exit code 0, but there is no file {where}."
                raise JobFailed("output_missing", sentence)
        for place in self._elsewhere():
            for path in files_at(self._folders, place):
                try:
                    self._bring(self._folders[place.base] / path, path)
                except PermissionError:
                    sentence = (
                        f"The output {path!r} has no place in the outputs, where a link "
                        "leads elsewhere or writing is forbidden."
                    )
                    raise JobFailed("output_missing", sentence) from None
        return len(files_at(self._folders, FilePlace("outputs", "*")))

    def _elsewhere(self) -> list[FilePlace]:
        return [place for place in self._places if place.base != "outputs"]

    def _bring(self, source: Path, path: str) -> None:
        """`source` into the outputs, where that can be as another name of the same bytes."""
        target = self._root / path
        _make_room(target)
        if target.exists():
            if target.samefile(source):
                return
            if path not in self._brought:
                raise JobFailed("output_collision", f"The program made two outputs {path!r}.")
            target.unlink()  # the program has replaced it
        try:
            target.hardlink_to(source)
        except OSError:  # a file system without such names
            shutil.copy2(source, target, follow_symlinks=False)
        self._brought.add(path)


class CheckpointFiles:
    """What a program can resume from: seen when it is finished, copied, handed over."""

    def __init__(self, context: JobContext, folders: Folders, declared: Checkpoints) -> None:
        self._context = context
        self._folders = folders
        self._place = place_of(declared.path)
        self._along = [place_of(path) for path in declared.along]
        self._settling = Settling(declared.settle_seconds)
        self._stage = context.checkpoints.resolve() / HANDED
        #: When the one handed over last was written, by its files' times.
        self._last = 0
        self._put_back()
        #: The checkpoint to resume from, in its place; None for a first attempt.
        self.resume = self._newest_path()

    def hand_over(self, *, all_finished: bool = False) -> None:
        """Hand over the newest finished one that is newer than the last.

        `all_finished`: the program has ended in good order, so none is half written.
        """
        settled = [
            (written, path, look)
            for written, path, look in self._found()
            if self._settling.settled(path, look) or all_finished
        ]
        newest = max(settled, key=lambda each: each[:2], default=None)
        if newest is not None and newest[0] > self._last:
            self._hand_over(*newest)

    def _hand_over(self, written: int, path: str, look: Files) -> None:
        """A copy: the program may remove, or write again, what is its own."""
        base = self._folders[self._place.base]
        try:
            _make_room(self._stage)
            shutil.rmtree(self._stage, ignore_errors=True)
            self._copy(self._place.base, look)
            if _look(base, path) != look:
                raise OSError("it was changed meanwhile")  # noqa: TRY301 - one way to give it up
            for place in self._along:
                self._copy(place.base, files_at(self._folders, place))
            self._context.checkpoint(self._stage)
        except OSError as error:
            print(f"checkpoint {path} was not handed over: {error}", flush=True)  # noqa: T201
            return
        self._last = written

    def _copy(self, base: Base, files: Files) -> None:
        for path in files:
            target = self._stage / base / path
            _make_room(target)
            shutil.copy2(self._folders[base] / path, target, follow_symlinks=False)

    def _put_back(self) -> None:
        """Copy a checkpoint's files to their former places, in the order of their times.

        A program may take the newest by ctime, which no call sets. So the newest file comes last,
        alone in its tick of the clock, and then each folder gets the time of its newest file.
        """
        saved = self._context.resume_from
        if saved is None:
            return
        found = [
            (facts.modified_ns, path, base)
            for base in {place.base for place in (self._place, *self._along)}
            for path, facts in _walk(saved / base, saved / base, hidden=True)
        ]
        times: dict[Path, int] = {}
        for modified_ns, path, base in (ordered := sorted(found)):
            if path == ordered[-1][1]:
                time.sleep(CLOCK_TICK_SECONDS)
            target = self._folders[base] / path
            _make_room(target)
            shutil.copy2(saved / base / path, target, follow_symlinks=False)
            above = target.relative_to(self._folders[base]).parents[:-1]
            times |= {self._folders[base] / folder: modified_ns for folder in above}
        for folder, modified_ns in sorted(times.items(), key=lambda each: each[1]):
            os.utime(folder, ns=(modified_ns, modified_ns))

    def _newest_path(self) -> Path | None:
        newest = max(self._found(), key=lambda each: each[:2], default=None)
        if newest is None:
            return None
        self._last = newest[0]
        return self._folders[self._place.base] / newest[1]

    def _found(self) -> list[tuple[int, str, Files]]:
        """Each checkpoint that is there: when it was written, its path, its files."""
        base = self._folders[self._place.base]
        looks = ((path, _look(base, path)) for path in _matches(base, self._place.glob))
        return [
            (max(facts.modified_ns for facts in look.values()), path, look)
            for path, look in looks
            if look
        ]


def _make_room(target: Path) -> None:
    """The folder for a file, and no link in the file's place: that would be written through.

    Raises:
        PermissionError: there is a link on the way to it. It is not for the worker to follow.
    """
    if os.path.realpath(target.parent) != str(target.parent):
        raise PermissionError(f"a link leads from {target.parent} elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()


def files_at(folders: Folders, place: FilePlace) -> Files:
    """The regular files that a place matches, by their paths in its folder."""
    root = folders[place.base]
    return {path: facts for path, facts in _walk(root, root) if fnmatchcase(path, place.glob)}


def _matches(root: Path, glob: str) -> Iterator[str]:
    """Files and folders whose path matches; nothing below one that does."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = [(Path(folder) / name).relative_to(root).as_posix() for name in folders]
        yield from (path for path in here if fnmatchcase(path, glob))
        folders[:] = [
            name for name, path in zip(folders, here, strict=True) if not fnmatchcase(path, glob)
        ]
        for name in names:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if not name.startswith(".") and fnmatchcase(path, glob):
                yield path


def _look(root: Path, path: str) -> Files:
    """The regular files of a file or folder; of a folder also hidden ones, which belong to it."""
    if (root / path).is_dir() and not (root / path).is_symlink():
        return dict(_walk(root / path, root, hidden=True))
    facts = _facts(root / path)
    return {path: facts} if facts else {}


def _walk(folder: Path, root: Path, *, hidden: bool = False) -> Iterator[tuple[str, _Facts]]:
    """Regular files below `folder` with their paths below `root`.

    Raises:
        JobFailed: there are too many to be looked at (`too_many_files`).
    """
    left = FILES_LIMIT
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if hidden or not name.startswith(".")]
        for name in names:
            path = Path(where) / name
            if (name.startswith(".") and not hidden) or (facts := _facts(path)) is None:
                continue
            left -= 1
            if left < 0:
                raise JobFailed(
                    "too_many_files",
                    f"The program has more than {FILES_LIMIT} files "
                    f"in its folder {root.name!r}: have it remove or pack those that "
                    "are done with, or keep them in its TMPDIR.",
                )
            yield path.relative_to(root).as_posix(), facts


def _facts(path: Path) -> _Facts | None:
    """None for what is no regular file, a link for example, or gone."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return _Facts(status.st_size, status.st_mtime_ns, status.st_ino)
