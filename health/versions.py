"""What this worker is made of: whether two workers run the same."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("runpod", "boto3", "pydantic", "torch")


def versions() -> dict[str, str | None]:
    """Of Python and of what matters most; None: not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache  # files are looked through for it, and `health` is asked on the event loop
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
