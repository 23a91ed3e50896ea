"""Write a new kind: a copy of the example in `examples`, and of its tests, under a new name."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Final

from jobs import JOBS

#: The kind that is copied.
EXAMPLE: Final = "approximate_pi"
#: In small letters and `_`: so it is a module and a kind, and its lines stay short.
NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_NAME: Final = 32
#: Kinds that the worker runs without a job.
RESERVED: Final = {"archive"}


class NotWritten(Exception):
    """The new kind was not written, and nothing was changed; says why."""


def write_kind(name: str, root: Path) -> tuple[Path, Path]:
    """Write the module and the tests of the kind `name` into the tree at `root`.

    Raises NotWritten.
    """
    _check_name(name)
    module, test = root / "jobs" / f"{name}.py", root / "tests" / f"test_{name}.py"
    for path in (module, module.with_suffix(""), test):
        if path.exists():
            raise NotWritten(f"{path.relative_to(root)} exists already.")
    try:
        source = (root / "examples" / f"{EXAMPLE}.py").read_text()
        tests = (root / "tests" / f"test_{EXAMPLE}.py").read_text()
    except OSError as error:
        raise NotWritten(f"{error}: is this a checkout of the worker?") from None
    module.write_text(source.replace(EXAMPLE, name))
    test.write_text(_importing_from_jobs(tests).replace(EXAMPLE, name))
    return module, test


def _check_name(name: str) -> None:
    """Raises NotWritten, unless a kind can be called so."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > MAX_NAME:
        raise NotWritten(
            f"A kind is called by small letters, digits and single _, a letter first, {MAX_NAME} "
            "at most, and not by a word of Python."
        )
    if name in (*JOBS, *JOBS.broken, *RESERVED):
        raise NotWritten(f"There is a kind {name!r} already.")


def _importing_from_jobs(tests: str) -> str:
    """The example's tests with their imports of it where those of a kind stand in order."""
    match = re.search(
        rf"^from examples\.({EXAMPLE} import .*\n)(from jobs import .*\n)", tests, re.MULTILINE
    )
    assert match is not None
    return tests.replace(match[0], f"{match[2]}from jobs.{match[1]}")
