"""The worker's ends of the pipes to a child, on the event loop, without transports: reading can
be put off, and writing never waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

#: Bytes read at a time. One read per turn of the loop, so that no job can keep the loop busy.
CHUNK: Final = 64 * 1024


class PipeReader:
    """Hands over what arrives on a pipe; `ended` is done once the other side is closed."""

    def __init__(self, pipe: int, received: Callable[[bytes], None]) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._received = received
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        """Begin to read, if that has not begun."""
        if not self.ended.done():
            self._loop.add_reader(self._pipe, self._read)

    def close(self) -> None:
        """Read no more."""
        if not self.ended.done():
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            chunk = os.read(self._pipe, CHUNK)
        except BlockingIOError:
            return
        if chunk:
            self._received(chunk)
        else:
            self.close()


class PipeWriter:
    """Sends in the background; what the other side no longer reads is dropped."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._pending = b""
        self._loop = asyncio.get_running_loop()
        self._open = True

    def send(self, data: bytes) -> None:
        """Send `data` after all that was sent before."""
        if self._open:
            self._pending += data
            self._write()

    def close(self) -> None:
        """Close at once, whatever is still on its way."""
        if self._open:
            self._open = False
            self._loop.remove_writer(self._pipe)
            os.close(self._pipe)

    def _write(self) -> None:
        try:
            written = os.write(self._pipe, self._pending)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:
            written = len(self._pending)
        self._pending = self._pending[written:]
        if self._pending:
            self._loop.add_writer(self._pipe, self._write)
        else:
            self._loop.remove_writer(self._pipe)
