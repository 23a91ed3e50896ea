"""Fetches of one file from a web server on this machine."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

from inputs.fetch import Limits, fetch
from inputs.files import CHUNK, Blob
from inputs.public_web import Web, parse_allowed_hosts

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web_server import WebServer

#: More than two chunks, and no two alike.
CONTENT = random.Random(7).randbytes(2 * CHUNK + 12345)  # noqa: S311 - no secret
HALF = len(CONTENT) // 2
QUERY = "key=secret"
STRONG = {"ETag": '"v1"'}
HERE = parse_allowed_hosts("127.0.0.1")


async def get(
    server: WebServer, path: Path, *, at: str = "/folder/file", **changes: Any
) -> Blob | None:
    """Fetch the server's file with short waits; fields of Limits and Web may be given."""
    limits: dict[str, Any] = {
        "max_bytes": 100 << 20,
        "total_seconds": 60,
        "tries": 3,
        "backoff_seconds": 0.001,
    }
    web: dict[str, Any] = {"allowed": HERE}
    for name in list(changes):
        for fields, kind in ((limits, Limits), (web, Web)):
            if name in kind._fields:
                fields[name] = changes.pop(name)
    return await fetch(
        f"{server.url}{at}?{QUERY}",
        path,
        web=Web(**web),
        limits=Limits(**limits),
        **changes,
    )


def blob(content: bytes, etag: str | None = None) -> Blob:
    return Blob(size=len(content), sha256=hashlib.sha256(content).hexdigest(), etag=etag)
