"""Printing: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from podjobs.errors import PodjobsError

#: Piped, no cell of a table is cut.
PIPED_WIDTH = 10_000
#: Results go to standard output, everything about them to standard error.
results = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
notes = Console(stderr=True, highlight=False)

COLOURS = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "interrupted": "magenta",
    "running": "cyan",
}


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """`value` as JSON has it; models and events become objects."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude={"links", "url"})
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(each) for name, each in _fields(value).items()}
    if hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table without borders; cells that a terminal has no room for are folded."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    results.print(table)


def coloured(status: str) -> str:
    """A status in its colour."""
    colour = COLOURS.get(status)
    return f"[{colour}]{status}[/]" if colour else status


def print_error(error: PodjobsError) -> None:
    """The error and what to do, on standard error."""
    notes.print(f"[bold red]error[/] {error.code}: {error.message}", markup=True, soft_wrap=True)
    if error.next_step:
        notes.print(f"      {error.next_step}", markup=False, soft_wrap=True)


def size_of(count: float) -> str:
    """Bytes as a person reads them: `1.4 MB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_of(seconds: float) -> str:
    """Seconds as a person reads them: `3:07`, `2:15:40`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
