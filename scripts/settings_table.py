"""Print the README's table of settings, from `settings.Settings`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from worker.settings import Settings, names_of


def table() -> str:
    """One row a setting, in the order in which `Settings` declares them."""
    rows = ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| {_variables(name)} | {_default(field)} | {field.description} |")
    return "\n".join(rows)


def _variables(name: str) -> str:
    return ", ".join(f"`{each}`" for each in names_of(name))


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "random"
    if field.default in (None, ""):
        return ""
    default = field.default
    return f"`{default.human_readable() if isinstance(default, ByteSize) else default}`"


if __name__ == "__main__":
    print(table())
