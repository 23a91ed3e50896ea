"""What a kind is, and how the kinds that this worker has are found."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, JsonValue

from child.prepare import Prepare

#: How a module declares its kind: `KIND = Job(...)`. Only such a module is imported.
_DECLARATION: Final = re.compile(rb"^KIND\b", re.MULTILINE)


class Keep(NamedTuple):
    """What a kind would load anew in each attempt, and may find loaded."""

    #: The path, among the inputs, of all that it is loaded from. What is kept is known by this path
    #: and its content, so loading may depend on nothing else.
    input: Callable[[Any], str]
    #: Loads it from the folder of inputs into host memory; never onto a GPU, never in threads. It
    #: outlives the attempt whose inputs these are: nothing of it may stay mapped from a file there,
    #: as what safetensors hands out is. Copy it (`clone`): a later attempt would find other bytes
    #: in it, or be killed (SIGBUS).
    load: Callable[[Path, Any], Any]


class Job(NamedTuple):
    """The definition behind a kind."""

    params: type[BaseModel]
    run: Callable[[Any, Any], JsonValue]
    #: What it needs once on a machine or volume; the job finds it as `context.prepared`.
    prepare: Prepare | None = None
    #: What is kept in memory between consecutive processes, as `context.kept`.
    keep: Keep | None = None
    #: What must be free on each GPU that an attempt may use before it begins, if there is any.
    gpu_bytes: int = 0

    @property
    def sentence(self) -> str:
        """The first line that the module of the kind says about it."""
        return (sys.modules[self.run.__module__].__doc__ or "").partition("\n")[0]


class Kinds(MutableMapping[str, Job]):
    """The kinds that the modules of a package declare, each called like its module.

    A module is imported when its kind is first looked up, because a child needs only its own. A
    module that cannot be used takes no other with it.
    """

    def __init__(self, package: str, folder: Path) -> None:
        self._package, self._folder = package, folder
        self._jobs: dict[str, Job] = {}
        self._broken: dict[str, str] = {}
        self._unread: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*.py"), key=lambda path: (path.stem, path)):
            self._unread.setdefault(path.stem, []).append(path)

    @property
    def broken(self) -> dict[str, str]:
        """Why a kind cannot run: a sentence that names its module, by kind. Imports all modules."""
        self.read_all()
        return self._broken

    def read_all(self) -> None:
        """Import every module that declares a kind."""
        for name in list(self._unread):
            self._read(name)

    def __getitem__(self, kind: str) -> Job:
        self._read(kind)
        return self._jobs[kind]

    def __setitem__(self, kind: str, job: Job) -> None:
        self._jobs[kind] = job

    def __delitem__(self, kind: str) -> None:
        del self._jobs[kind]

    def __iter__(self) -> Iterator[str]:
        self.read_all()
        return iter(self._jobs)

    def __len__(self) -> int:
        self.read_all()
        return len(self._jobs)

    def _read(self, name: str) -> None:
        """Import the modules of this name that declare a kind, unless that was done before."""
        for path in self._unread.pop(name, ()):
            if not _DECLARATION.search(path.read_bytes()):
                continue
            try:
                if name in self._jobs:
                    raise ImportError("another module has this name")  # noqa: TRY301 - one way to fail
                self._jobs[name] = _declared(self._package, path.relative_to(self._folder))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - an author's module runs anything
                where = f"{path}:{_line_of(error, path)}"
                sentence = f"The kind {name} cannot run: {where}: {type(error).__name__}: {error}"
                self._broken[name] = sentence


def _line_of(error: BaseException, path: Path) -> int:
    """Where in the file of a module its import failed: the last line that was run, else 1."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return (lines[-1] if lines else None) or 1


def _declared(package: str, path: Path) -> Job:
    name = ".".join((package, *path.with_suffix("").parts))
    kind = importlib.import_module(name).KIND
    if not isinstance(kind, Job):
        raise TypeError("KIND is no Job")
    return kind
