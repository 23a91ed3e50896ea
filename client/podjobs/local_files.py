"""The files that an upload would send: found, filtered, hashed. Nothing is sent here."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pathspec
import platformdirs

from podjobs.errors import FileChanged, InvalidPath

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Left out of every upload: what file managers and archives add beside a person's files.
ALWAYS_IGNORED = (".DS_Store", "._*", "__MACOSX/", "Thumbs.db", "desktop.ini")
IGNORE_FILE = ".gitignore"
BLOCK = 1 << 20


class LocalFile(NamedTuple):
    """A file to send. `path` is its name in the input folder, with `/` between the parts."""

    path: str
    place: Path
    size: int
    modified_ns: int
    sha256: str = ""


class Found(NamedTuple):
    """The files to send, and the paths of those that ignore rules left out."""

    files: tuple[LocalFile, ...]
    ignored: tuple[str, ...]


def find(source: str | os.PathLike[str]) -> Found:
    """The files of a folder, a single file, or those that match a glob.

    A folder's `.gitignore` applies to it. Links to files are followed, links to folders are not.

    Raises:
        InvalidPath: there is nothing to send, or two names differ only in case or normalisation.
    """
    root = Path(source).expanduser()
    if root.is_dir():
        found = _in_folder(root)
    elif root.is_file():
        found = Found((_local_file(root.name, root),), ())
    else:
        found = Found(tuple(_local_file(place.name, place) for place in _matches(root)), ())
    if not found.files:
        left_out = f" ({len(found.ignored)} ignored)" if found.ignored else ""
        raise InvalidPath(f"there are no files to send at {source}{left_out}")
    _check_names(file.path for file in found.files)
    return found


def _in_folder(root: Path) -> Found:
    rules = [*ALWAYS_IGNORED]
    own = root / IGNORE_FILE
    if own.is_file():
        rules += own.read_text(encoding="utf-8", errors="replace").splitlines()
    spec = pathspec.GitIgnoreSpec.from_lines(rules)
    files, ignored = [], []
    for folder, folders, names in os.walk(root):
        base = Path(folder)
        inside = base.relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in [each for each in folders if spec.match_file(f"{prefix}{each}/")]:
            folders.remove(name)
            ignored.append(f"{prefix}{name}/")
        folders.sort()
        for name in sorted(names):
            if name == IGNORE_FILE and not prefix:
                continue
            if spec.match_file(f"{prefix}{name}"):
                ignored.append(f"{prefix}{name}")
            elif (base / name).is_file():
                files.append(_local_file(f"{prefix}{name}", base / name))
    return Found(tuple(files), tuple(ignored))


def _matches(pattern: Path) -> list[Path]:
    anchor = Path(pattern.anchor) if pattern.anchor else Path()
    relative = pattern.relative_to(pattern.anchor) if pattern.anchor else pattern
    return sorted(place for place in anchor.glob(str(relative)) if place.is_file())


def _local_file(path: str, place: Path) -> LocalFile:
    seen = place.stat()
    return LocalFile(path, place, seen.st_size, seen.st_mtime_ns)


def _check_names(paths: Iterable[str]) -> None:
    """Raises InvalidPath for names that some disk, or some reader, would take for one."""
    seen: dict[str, str] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", path).casefold()
        other = seen.setdefault(folded, path)
        if other != path:
            raise InvalidPath(
                f"{other!r} and {path!r} differ only in case or normalisation",
                next_step="rename one of them: on many disks they are the same file",
            )


class HashCache:
    """Remembers the sha256 of files by path, size and time, so that each is read once."""

    def __init__(self, place: Path | None = None) -> None:
        self._place = place or platformdirs.user_cache_path("podjobs") / "hashes.sqlite"

    def hashed(self, files: Iterable[LocalFile]) -> Iterator[LocalFile]:
        """Each of `files` with its sha256.

        Raises:
            FileChanged: a file was written to while it was read.
        """
        self._place.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._place, timeout=30)) as known:
            known.execute(
                "CREATE TABLE IF NOT EXISTS hashes "
                "(path TEXT PRIMARY KEY, size INTEGER, modified_ns INTEGER, sha256 TEXT)"
            )
            for file in files:
                yield self._hashed(known, file)

    def _hashed(self, known: sqlite3.Connection, file: LocalFile) -> LocalFile:
        path = os.fspath(file.place.resolve())
        key = path.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")
        row = known.execute(
            "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND modified_ns = ?",
            (key, file.size, file.modified_ns),
        ).fetchone()
        if row:
            return file._replace(sha256=row[0])
        digest = sha256_of(file.place)
        if _local_file(file.path, file.place)[2:4] != file[2:4]:
            raise FileChanged(f"{file.place} changed while it was read")
        with known:
            known.execute(
                "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)",
                (key, file.size, file.modified_ns, digest),
            )
        return file._replace(sha256=digest)


def sha256_of(place: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with place.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_name(stem: str, files: Iterable[LocalFile]) -> str:
    """A name for an input folder with exactly these files.

    The same files give the same name, so that they are sent once; other files give another name,
    so that a process never finds its inputs changed.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode("utf-8", "surrogatepass"))
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in stem)
    return f"{plain.strip('-_.')[:60] or 'files'}-{digest.hexdigest()[:16]}"
