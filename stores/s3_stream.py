"""The near end of a stream on its way up: cut into parts as its chunks come, and hashed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from storage import FileFacts
from stores.s3_files import part_size
from stores.streams import check_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stores.s3_files import Memory

_NOTHING = memoryview(b"")


class Stream:
    """`collect` a part, `hash` it, `take` it, until the stream has `ended`."""

    def __init__(self, chunks: AsyncIterator[bytes], size: int, memory: Memory) -> None:
        """`size` is the most bytes that may come."""
        self._memory = memory
        self._chunks = chunks
        self._size = size
        self._part = part_size(size)
        self._hash = hashlib.sha256()
        self._came = 0
        self._collected = 0
        #: What is left of the last chunk.
        self._rest = _NOTHING
        self._data = _NOTHING
        #: The part that was collected last is the last.
        self.ended = False

    async def collect(self) -> None:
        """Wait for the next part: full-sized, but for the last, which is empty if it is the first.

        Looks ahead by a chunk, so that the last part is known as such.

        Raises:
            ValueError: more bytes came than were announced.
        """
        data, filled = self._memory.lend(min(self._part, self._size - self._collected)), 0
        while await self._more() and filled < len(data):
            bite = self._rest[: len(data) - filled]
            data[filled : filled + len(bite)] = bite
            self._rest = self._rest[len(bite) :]
            filled += len(bite)
        self._data = data[:filled]
        self._collected += filled

    async def _more(self) -> bool:
        """Whether there are bytes still to be put into a part."""
        while not self._rest and not self.ended:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self.ended = True
            else:
                self._came += len(chunk)
                check_size(self._came, self._size)
                self._rest = memoryview(chunk)
        return not self.ended

    def hash(self) -> None:
        """Blocking: once for each part, in their order."""
        self._hash.update(self._data)

    def take(self) -> memoryview:
        """The part, from here on the caller's alone: who has sent it gives it back."""
        data, self._data = self._data, _NOTHING
        return data

    @property
    def facts(self) -> FileFacts:
        """What was collected."""
        return FileFacts(self._collected, self._hash.hexdigest())
