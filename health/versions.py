"""The versions of this worker, of its API and of its libraries."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

#: The number of the API. Raise it when a request or a reply changes in a way that callers notice.
API = 1
#: The worker's own version; pyproject.toml repeats it.
WORKER = "0.1.0"
PACKAGES = ("runpod", "boto3", "pydantic", "torch")


def versions() -> dict[str, str | None]:
    """Versions of the worker, of Python and of the main libraries; None: not installed."""
    known = {"worker": WORKER, "python": platform.python_version()}
    return known | {name: _version(name) for name in PACKAGES}


@cache  # files are looked through for it, and `health` is asked on the event loop
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
