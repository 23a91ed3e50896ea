"""Templates of a declared program: texts in which `{name}` stands for a value. Pure.

Values are never pasted into anything that is parsed again: an argv item stays one item, and in a
config file a value takes the place of a whole node before a library writes the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from string import Formatter
from typing import Any

from pydantic import BaseModel

#: What a placeholder may stand for.
Scalar = str | int | float | bool | None
Value = Scalar | list[Any]
Values = Mapping[str, Value]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Declared(BaseModel, frozen=True, extra="forbid"):
    """A value that the operator has written down. (`utils.Frozen` would bring asyncio along.)"""


class When(Declared):
    """Items of an argv that are there only if a param is neither null nor false."""

    when: str
    items: tuple[str, ...]


#: One item; items that are there only if none of their values is null; or a `When`.
ArgvPart = str | tuple[str, ...] | When


def names_in(text: str) -> list[str]:
    """The names that stand in `text`, in order.

    Raises:
        ValueError: a brace that is neither doubled nor part of a `{name}`.
    """
    return [name for _, name in _parts(text) if name]


def only_name(text: str) -> str | None:
    """The name, if `text` is one placeholder and nothing else."""
    match _parts(text):
        case [("", name)]:
            return name
        case _:
            return None


def leading_names(text: str) -> Iterator[str]:
    """The names that `text` may begin with: an empty value leaves its place to the next."""
    for literal, name in _parts(text):
        if literal or name is None:
            return
        yield name


def fill_text(text: str, values: Values) -> str:
    """`text` with its values."""
    return "".join(
        literal + (as_text(values[name]) if name else "") for literal, name in _parts(text)
    )


def fill_argv(parts: Iterable[ArgvPart], values: Values) -> list[str]:
    """The items of a command line. A list spreads where it is an item's only content."""
    return [
        item for part in parts for text in _wanted(part, values) for item in _items(text, values)
    ]


def fill_config(node: Any, values: Values) -> Any:
    """A tree of tables, lists and scalars with its values, each of its own type."""
    match node:
        case str():
            name = only_name(node)
            return values[name] if name else fill_text(node, values)
        case list():
            return [fill_config(each, values) for each in node]
        case dict():
            return {key: fill_config(each, values) for key, each in node.items()}
        case _:
            return node


def texts_in(node: Any) -> Iterator[str]:
    """All texts of a config's tree that are values, not names."""
    match node:
        case str():
            yield node
        case list():
            for each in node:
                yield from texts_in(each)
        case dict():
            for each in node.values():
                yield from texts_in(each)
        case int() | float():
            pass
        case _:
            raise ValueError("a config holds texts, numbers, booleans, lists and tables only")


def as_text(value: Value) -> str:
    """How a value is written inside of a text: booleans as `true` and `false`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wanted(part: ArgvPart, values: Values) -> Iterable[str]:
    match part:
        case str():
            return [part]
        case When():
            return part.items if values[part.when] not in (None, False) else []
        case _:
            names = [name for text in part for name in names_in(text)]
            return part if all(values[name] is not None for name in names) else []


def _items(text: str, values: Values) -> list[str]:
    name = only_name(text)
    value = values[name] if name else None
    return (
        [as_text(each) for each in value] if isinstance(value, list) else [fill_text(text, values)]
    )


def _parts(text: str) -> list[tuple[str, str | None]]:
    """Literal text and the name that follows it. Raises ValueError."""
    parts = []
    for literal, name, form, conversion in Formatter().parse(text):
        if name is not None and (form or conversion or not _NAME.fullmatch(name)):
            raise ValueError("in braces stands the name of a param; a brace itself is doubled")
        parts.append((literal, name))
    return parts
