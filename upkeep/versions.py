"""What this worker is made of: whether two workers run the same."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("runpod", "boto3", "pydantic", "torch")


def versions() -> dict[str, str | None]:
    """Of Python and of what matters most; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
