"""Write a new kind: its module, its tests, and its lines in `jobs/__init__.py`."""

from __future__ import annotations

import ast
import difflib
import keyword
import re
from pathlib import Path
from typing import Final

from jobs import JOBS
from jobs.kind_template import module_of, test_of

#: In small letters and `_`: so it is a module and a kind, and its lines stay short.
NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_NAME: Final = 32
#: Kinds that the worker runs without a job.
RESERVED: Final = {"archive"}
WIDTH: Final = 100


class NotWritten(Exception):
    """The new kind was not written, and nothing was changed; says why."""


def write_kind(name: str, root: Path) -> str:
    """Write the kind `name` into the tree at `root`; what was changed there, as a person reads it.

    Raises NotWritten.
    """
    _check_name(name)
    module, test = root / "jobs" / f"{name}.py", root / "tests" / f"test_{name}.py"
    for path in (module, test):
        if path.exists():
            raise NotWritten(f"{path.relative_to(root)} exists already.")
    if not test.parent.is_dir():
        raise NotWritten(f"There is no folder {test.parent}: is this a checkout of the worker?")
    register = root / "jobs" / "__init__.py"
    before = register.read_text()
    after = registered(before, name)
    module.write_text(module_of(name))
    test.write_text(test_of(name))
    register.write_text(after)
    where = register.relative_to(root).as_posix()
    diff = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), where, where, n=1
    )
    return f"new: {module.relative_to(root)}\nnew: {test.relative_to(root)}\n{''.join(diff)}"


def _check_name(name: str) -> None:
    """Raises NotWritten, unless a kind can be called so."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or len(name) > MAX_NAME:
        raise NotWritten(
            f"A kind is called by small letters, digits and single _, a letter first, {MAX_NAME} "
            "at most, and not by a word of Python."
        )
    if name in JOBS or name in RESERVED:
        raise NotWritten(f"There is a kind {name!r} already.")


def registered(source: str, name: str) -> str:
    """`source`, that of jobs/__init__.py, with the kind `name`. Raises NotWritten if unsure how."""
    tree = ast.parse(source)
    kinds = next((node for node in tree.body if _imports_kinds(node)), None)
    table = _table(tree)
    if isinstance(kinds, ast.ImportFrom) and isinstance(table, ast.Dict):
        lines = source.splitlines(keepends=True)
        lines.insert((table.end_lineno or 0) - 1, _entry(name))  # before the closing brace
        names = sorted({name, *(alias.name for alias in kinds.names)})
        lines[kinds.lineno - 1 : kinds.end_lineno] = [_import(names)]
        after = "".join(lines)
        if _names_in(after) == [*_names_in(source), name]:
            return after
    raise NotWritten(
        "jobs/__init__.py looks unusual. Bring it back to how it was: one line "
        "`from jobs import ...`, and one line for each kind in `JOBS`."
    )


def _imports_kinds(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "jobs"


def _table(tree: ast.Module) -> ast.expr | None:
    """What `JOBS` is made of."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "JOBS":
            return node.value
    return None


def _names_in(source: str) -> list[str]:
    """The kinds in `JOBS`; none, if that cannot be read."""
    try:
        table = _table(ast.parse(source))
    except SyntaxError:
        return []
    names = table.keys if isinstance(table, ast.Dict) else []
    return [str(key.value) for key in names if isinstance(key, ast.Constant)]


def _import(names: list[str]) -> str:
    line = f"from jobs import {', '.join(names)}\n"
    if len(line.rstrip()) <= WIDTH:
        return line
    return "".join(["from jobs import (\n", *(f"    {name},\n" for name in names), ")\n"])


def _entry(name: str) -> str:
    line = f'    "{name}": Job({name}.Params, {name}.run),\n'
    if len(line.rstrip()) <= WIDTH:
        return line
    return f'    "{name}": Job(\n        {name}.Params, {name}.run\n    ),\n'
