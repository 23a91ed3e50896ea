"""A kind's params, as rows for a table, from their JSON schema. Pure."""

from __future__ import annotations

import json
from typing import Any

#: JSON schema's words for limits, and how they are shown.
_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
}


def param_rows(schema: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Name, type, default, limits and meaning of each param."""
    required = set(schema.get("required", ()))
    return [
        (
            name,
            _type(field),
            "required" if name in required else json.dumps(field.get("default")),
            ", ".join(_limits(field)),
            field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    ]


def _variants(field: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]


def _type(field: dict[str, Any]) -> str:
    kinds = [
        " | ".join(map(str, each["enum"])) if "enum" in each else str(each.get("type", "any"))
        for each in _variants(field)
    ]
    return " | ".join(kinds)


def _limits(field: dict[str, Any]) -> list[str]:
    return [
        shown.format(each[word])
        for each in _variants(field)
        for word, shown in _LIMITS.items()
        if word in each
    ]
