"""A job's values as plain JSON: numbers of numpy and torch are taken, NaN becomes null.

Neither library is imported: their scalars, arrays and tensors are known by `ndim`, `item` and
`tolist`, which both have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def plain(value: Any, warn: Callable[[str], None], place: str = "result") -> Any:
    """`value` with nothing in it but what JSON has.

    `warn` is told each `place` where a NaN or an infinity became null. Values that JSON has no
    form for are left for the encoder to refuse. Raises RecursionError.
    """
    match value:
        case float() if not math.isfinite(value):
            warn(f"{place} is {value}, which JSON does not have: it became null")
            return None
        case float():
            return float(value)  # numpy's float64 is one, too
        case dict():
            return {
                _plain_name(name): plain(each, warn, f"{place}.{name}")
                for name, each in value.items()
            }
        case list() | tuple():
            return [plain(each, warn, f"{place}[{at}]") for at, each in enumerate(value)]
    dimensions = getattr(value, "ndim", None)
    if dimensions is None or not hasattr(value, "tolist"):
        return value
    return plain(value.item() if dimensions == 0 else value.tolist(), warn, place)


def _plain_name(name: Any) -> Any:
    return name.item() if getattr(name, "ndim", None) == 0 else name
