"""Files up and down, on every store there is: whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from storage import ChecksumMismatch, FileFacts, ObjectNotFound
from tests import servers

if TYPE_CHECKING:
    from pathlib import Path

    from storage import Store

MIB = 1 << 20


@pytest.fixture
def outgoing(tmp_path: Path) -> Path:
    return tmp_path / "outgoing"


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "incoming"


@pytest.mark.parametrize("size", [0, 1, 100_000, 17 * MIB + 1])
async def test_a_file_goes_up_and_comes_back(
    store: Store, outgoing: Path, incoming: Path, size: int
) -> None:
    data = os.urandom(size)
    outgoing.write_bytes(data)
    facts = FileFacts(size, hashlib.sha256(data).hexdigest())
    assert await servers.upload_file(store, outgoing, "a/b") == facts
    assert await store.download("a/b", incoming, expected=facts) == facts
    assert incoming.read_bytes() == data
    assert [path.name for path in incoming.parent.iterdir()] == ["incoming"]
    assert [(row.key, row.size) for row in (await store.list("")).objects] == [("a/b", size)]


async def test_a_file_that_went_up_can_be_got_and_replaced(store: Store, outgoing: Path) -> None:
    outgoing.write_bytes(b"x" * (17 * MIB))
    await servers.upload_file(store, outgoing, "a")
    stored = await store.get("a")
    assert len(stored.data) == 17 * MIB
    assert (await store.get("a", cached=stored)).data is stored.data
    await store.replace("a", b"small", stored.version)
    assert (await store.get("a")).data == b"small"


async def test_a_file_takes_the_place_of_an_object(store: Store, outgoing: Path) -> None:
    await store.put("a", b"old")
    outgoing.write_bytes(b"new")
    await servers.upload_file(store, outgoing, "a", content_type="text/plain")
    assert (await store.get("a")).data == b"new"


async def test_progress_is_told_on_the_event_loop(
    store: Store, outgoing: Path, incoming: Path
) -> None:
    size = 17 * MIB
    outgoing.write_bytes(b"x" * size)
    up: list[int] = []
    down: list[int] = []
    threads: set[int] = set()

    def note(counts: list[int], count: int) -> None:
        counts.append(count)
        threads.add(threading.get_ident())

    await servers.upload_file(store, outgoing, "a", on_bytes=lambda count: note(up, count))
    await store.download("a", incoming, on_bytes=lambda count: note(down, count))
    assert (sum(up), sum(down)) == (size, size)
    assert len(up) > 1
    assert len(down) > 1
    assert threads == {threading.get_ident()}


async def test_the_file_that_was_opened_goes_up_and_no_other(store: Store, outgoing: Path) -> None:
    """From its beginning, although it was read, and although another file has its name now."""
    outgoing.write_bytes(b"checked")
    with outgoing.open("rb") as file:
        file.read()
        outgoing.unlink()
        outgoing.write_bytes(b"swapped")
        await store.upload(file, "a")
        assert not file.closed
    assert (await store.get("a")).data == b"checked"


async def test_a_missing_object_cannot_come_down(store: Store, incoming: Path) -> None:
    with pytest.raises(ObjectNotFound):
        await store.download("a", incoming)
    assert not incoming.exists()


@pytest.mark.parametrize(
    "expected",
    [
        FileFacts(3, hashlib.sha256(b"other").hexdigest()),
        FileFacts(4, hashlib.sha256(b"123").hexdigest()),
    ],
    ids=["other bytes", "other size"],
)
async def test_what_was_not_announced_does_not_appear(
    store: Store, incoming: Path, expected: FileFacts
) -> None:
    await store.put("a", b"123")
    incoming.parent.mkdir()
    incoming.write_bytes(b"what was there before")
    with pytest.raises(ChecksumMismatch):
        await store.download("a", incoming, expected=expected)
    assert incoming.read_bytes() == b"what was there before"
    assert [path.name for path in incoming.parent.iterdir()] == ["incoming"]
