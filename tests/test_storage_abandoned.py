"""A download into a folder whose caller has gone: its thread leaves nothing behind.

The path may lead through a descriptor that the caller closes as soon as the call is over.
"""

import asyncio
import threading

import pytest

from stores.local import files
from stores.local.store import LocalStore


@pytest.mark.parametrize("data", [b"", b"bytes"])
async def test_a_cancelled_download_ends_when_its_thread_has(tmp_path, monkeypatch, data):
    store, target = LocalStore(tmp_path / "store"), tmp_path / "target" / "file"
    await store.put("a", data)
    copy, begun, ended = files.copy, threading.Event(), threading.Event()

    def held(source, file, transfer):
        begun.set()
        transfer.abandoned.wait()
        try:
            return copy(source, file, transfer)
        finally:
            ended.set()

    monkeypatch.setattr(files, "copy", held)
    download = asyncio.create_task(store.download("a", target))
    await asyncio.to_thread(begun.wait)
    download.cancel()
    await asyncio.wait([download])
    assert ended.is_set()
    assert list(target.parent.iterdir()) == []
    await store.close()
