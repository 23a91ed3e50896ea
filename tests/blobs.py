"""Origins of blobs, copies that a test holds up, and looks into the cache's folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from typing import TYPE_CHECKING

from inputs import blob_cache
from inputs.files import Blob

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from inputs.blob_cache import BlobCache


class Origin:
    """Where the bytes come from; counts who comes, and lets a test hold them up."""

    def __init__(self, content: bytes = b"content") -> None:
        self.content = content
        #: What each fetch was told to be here already.
        self.asked: list[Blob | None] = []
        self.fails_with: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.cancelled = asyncio.Event()

    @property
    def blob(self) -> Blob:
        sha256 = hashlib.sha256(self.content).hexdigest()
        return Blob(size=len(self.content), sha256=sha256, etag=f'"{sha256[:8]}"')

    async def fetch(self, path: Path, known: Blob | None) -> Blob | None:
        self.asked.append(known)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.fails_with is not None:
            path.write_bytes(b"half of")
            raise self.fails_with
        if known is not None and known.etag == self.blob.etag:
            return None
        path.write_bytes(self.content)
        return self.blob


class HeldUp:
    """The first piece of a copy waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.go_on, self.ended = (threading.Event() for _ in range(3))
        self._copy_some = blob_cache._copy_some
        monkeypatch.setattr(blob_cache, "_copy_some", self)

    def __call__(self, source: Path, part: Path, offset: int, digest: hashlib._Hash) -> int:
        if self.started.is_set():
            return self._copy_some(source, part, offset, digest)
        self.started.set()
        try:
            assert self.go_on.wait(60)
            return self._copy_some(source, part, offset, digest)
        finally:
            self.ended.set()


async def until(condition: Callable[[], object]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.005)


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.glob("*.blob"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unfinished(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.glob(".*")]


async def keep(cache: BlobCache, identity: str, content: bytes, target: Path) -> None:
    await cache.place(identity, target, Origin(content).fetch, immutable=True)


def a_minute_passes(folder: Path) -> None:
    for path in folder.glob("*.blob"):
        used = path.stat().st_mtime - 60
        os.utime(path, (used, used))
