"""What `Dockerfile` says, stage by stage, and what `.dockerignore` keeps out."""

from __future__ import annotations

import re
import shlex
import subprocess
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Instruction(NamedTuple):
    """One line, continuations joined: `COPY`, `a b /c`."""

    name: str
    rest: str


class Stage(NamedTuple):
    """From one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction]

    def all(self, name: str) -> list[str]:
        """What follows each `name`."""
        return [each.rest for each in self.instructions if each.name == name]

    def where(self, name: str, pattern: str) -> int:
        """The place of the only such instruction."""
        (found,) = [
            place
            for place, each in enumerate(self.instructions)
            if each.name == name and re.search(pattern, each.rest)
        ]
        return found

    def copied(self) -> dict[str, str]:
        """Source in the repository to its place in the image; other stages' files left out."""
        copies = {}
        for rest in self.all("COPY"):
            *sources, target = [word for word in shlex.split(rest) if not word.startswith("--")]
            if "--from=" not in rest:
                copies |= dict.fromkeys(sources, target)
        return copies


def arguments() -> dict[str, str]:
    """What stands before the first FROM: the arguments that choose the bases."""
    return dict(
        each.rest.split("=", 1)
        for each in _instructions()
        if each.name == "ARG" and "=" in each.rest
    )


def stages() -> dict[str, Stage]:
    found = _instructions()
    starts = [place for place, each in enumerate(found) if each.name == "FROM"]
    parts = [found[start:end] for start, end in pairwise([*starts, len(found)])]
    read = [re.fullmatch(r"(\S+) AS (\S+)", first.rest) for first, *_ in parts]
    return {
        named[2]: Stage(named[2], named[1], rest)
        for named, (_, *rest) in zip(read, parts, strict=True)
        if named
    }


def _instructions() -> list[Instruction]:
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def tracked(*patterns: str) -> list[str]:
    """Files that git knows; a path, or one with `*` as the shell has it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *(f":(glob){pattern}" for pattern in patterns)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [name for name in listed.split("\0") if name]


def files_of(source: str) -> list[str]:
    """The tracked files that `COPY source` takes."""
    return tracked(source, f"{source}/**")


def let_through(path: str) -> bool:
    """Whether `.dockerignore` lets a file into a build: the last line that matches decides."""
    allowed = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and _matches(line.removeprefix("!"), path):
            allowed = line.startswith("!")
    return allowed


def _matches(pattern: str, path: str) -> bool:
    """As Docker does: the path itself or a folder above it, part by part."""
    wanted, parts = pattern.split("/"), path.split("/")
    return len(wanted) <= len(parts) and all(map(fnmatchcase, parts, wanted))
