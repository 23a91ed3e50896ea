"""Streams on their way up, on every store there is: whole or not at all, and closed in the end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from storage import FileFacts, ObjectNotFound
from tests import servers
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage import Store

MIB = 1 << 20
PART = 8 * MIB


class BrokenSource(Exception):
    """What the maker of a stream may raise."""


class Chunks:
    """A stream that tells whether it was closed; ends with `error`, if there is one."""

    def __init__(self, *chunks: bytes, error: BaseException | None = None) -> None:
        self._chunks = iter(chunks)
        self._error = error
        self.closed = False
        #: Nobody has come for more than there is; then they wait for `go`.
        self.at_the_end = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        self.at_the_end.set()
        await self.go.wait()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        (0, 1),
        (1, 1),
        (100_000, 999),
        (PART - 1, MIB),
        (PART, MIB),
        (PART + 1, MIB),
        (2 * PART, 3 * MIB + 1),
        (17 * MIB + 1, 100_003),
        (17 * MIB + 1, 18 * MIB),
    ],
)
async def test_a_stream_becomes_an_object(store: Store, size: int, chunk: int) -> None:
    data = os.urandom(size)
    chunks = Chunks(*cut(data, chunk))
    facts = await store.upload_stream(chunks, "a/b", size=size)
    assert facts == FileFacts(size, hashlib.sha256(data).hexdigest())
    assert (await store.get("a/b")).data == data
    assert chunks.closed
    assert await servers.keys_of(store) == ["a/b"]


@pytest.mark.parametrize("size", [0, 10, PART, PART + 10])
async def test_a_stream_may_be_shorter_than_announced(store: Store, size: int) -> None:
    data = os.urandom(size)
    facts = await store.upload_stream(Chunks(*cut(data, MIB)), "a", size=100 * MIB)
    assert facts.size == size
    assert (await store.get("a")).data == data


async def test_empty_chunks_are_no_end(store: Store) -> None:
    await store.upload_stream(Chunks(b"", b"1", b"", b"", b"2", b""), "a", size=2)
    assert (await store.get("a")).data == b"12"


async def test_a_stream_takes_the_place_of_an_object(store: Store) -> None:
    await store.put("a", b"old")
    await store.upload_stream(Chunks(b"new"), "a", size=3, content_type="text/plain")
    assert (await store.get("a")).data == b"new"


async def test_a_stream_needs_no_more_than_to_be_iterable(store: Store) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    await store.upload_stream(chunks(), "a", size=2)
    assert (await store.get("a")).data == b"12"


async def test_progress_of_a_stream_is_told_on_the_event_loop(store: Store) -> None:
    counts: list[int] = []
    threads: set[int] = set()

    def note(count: int) -> None:
        counts.append(count)
        threads.add(threading.get_ident())

    data = bytes(17 * MIB)
    await store.upload_stream(Chunks(*cut(data, MIB)), "a", size=len(data), on_bytes=note)
    assert sum(counts) == len(data)
    assert len(counts) > 1
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("size", [0, 1, PART, PART + MIB])
async def test_more_than_was_announced_does_not_appear(store: Store, size: int) -> None:
    await store.put("a", b"old")
    chunks = Chunks(*cut(bytes(size + 1), MIB))
    with pytest.raises(ValueError, match=f"{size} bytes announced"):
        await store.upload_stream(chunks, "a", size=size)
    assert chunks.closed
    assert (await store.get("a")).data == b"old"


@pytest.mark.parametrize("before", [0, 10, PART, 2 * PART + MIB])
async def test_an_error_of_the_stream_comes_out_as_it_is(store: Store, before: int) -> None:
    error = BrokenSource("in words")
    error.__cause__ = cause = OSError("why")
    chunks = Chunks(*cut(bytes(before), MIB), error=error)
    with pytest.raises(BrokenSource) as caught:
        await store.upload_stream(chunks, "a", size=100 * MIB)
    assert caught.value is error
    assert error.__cause__ is cause
    assert chunks.closed
    assert await servers.keys_of(store) == []


@pytest.mark.parametrize("before", [0, 10, 2 * PART + MIB])
async def test_who_is_cancelled_while_waiting_for_a_chunk_leaves_nothing(
    store: Store, before: int
) -> None:
    chunks = Chunks(*cut(bytes(before), MIB))
    chunks.go.clear()
    task = asyncio.create_task(store.upload_stream(chunks, "a", size=100 * MIB))
    await chunks.at_the_end.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert chunks.closed
    with pytest.raises(ObjectNotFound):
        await store.stat("a")


async def test_streams_that_wait_keep_nobody_else_from_moving(store: Store) -> None:
    """Not even those that they are made from: here, of the range that their last chunk is."""
    await store.put("source", b"123")

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(PART + MIB)
        yield await store.get_range("source", offset=0, length=3)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(store.upload_stream(chunks(), f"copy-{number}", size=2 * PART))
    assert {(await store.stat(f"copy-{number}")).size for number in range(8)} == {PART + MIB + 3}
