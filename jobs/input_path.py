"""A param that names one of the process's inputs, or a part of it; and where that lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from child.names import relative

InputPath = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(relative)]


def is_there(root: Path, path: Path) -> bool:
    """Whether `path` is something. Raises ValueError when that lies outside of `root`: a link."""
    try:
        inside = path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False  # it is not there; or the name is too long, or links go round in circles
    if not inside:
        raise ValueError(f"{path.name!r} is a link to elsewhere")
    return True


def contents_of(folder: Path) -> str:
    """What lies in `folder`, for a sentence."""
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "none"
