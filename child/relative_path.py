"""Paths that callers and operators give: relative, so that they lead to no other folder."""

from __future__ import annotations


def is_relative(path: str) -> bool:
    """Whether `path` stays below the folder that it is looked up in, links aside."""
    return {"", ".", ".."}.isdisjoint(path.split("/")) and "\\" not in path and path.isprintable()


def relative(path: str) -> str:
    """`path`, if it is relative. Raises ValueError otherwise."""
    if not is_relative(path):
        raise ValueError("must be a relative path, parts divided by single '/', without '..'")
    return path
