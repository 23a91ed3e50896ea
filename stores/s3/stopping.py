"""Ends requests from another thread, also those that a silent store keeps waiting."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection

from storage import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Guards which connection belongs to which `Stop`: a connection serves one transfer after another.
_lock = threading.Lock()


class Stop:
    """Ends the requests of one transfer. From any thread."""

    def __init__(self) -> None:
        self._connections: set[StoppableHTTP] = set()
        self._stopped = False

    def set(self) -> None:
        """Shut down the connections in use and refuse further requests. Idempotent."""
        with _lock:
            self._stopped = True
            for connection in self._connections:
                connection.shut_down()

    def is_set(self) -> bool:
        return self._stopped

    def check(self) -> None:
        """Raises StorageUnavailable if it is set."""
        if self._stopped:
            raise StorageUnavailable("the transfer was stopped")

    @contextmanager
    def ends_request(self, idle: float) -> Iterator[None]:
        """This thread's request also ends after `idle` seconds without a byte."""
        _request.stop, _request.idle = self, idle
        try:
            yield
        finally:
            self.use(None)

    def use(self, connection: StoppableHTTP | None) -> None:
        """This thread's request uses `connection`, and no other any more."""
        with _lock:
            for each in (_request.connection, connection):
                if each is not None and each.stop is not None:
                    each.stop._connections.discard(each)
                    each.stop = None
            _request.connection = connection
            if connection is not None:
                connection.stop = self
                self._connections.add(connection)


class _Request(threading.local):
    """What this thread is about to send; urllib3 chooses the connection."""

    stop: Stop
    idle: float
    connection: StoppableHTTP | None = None


_request = _Request()


class StoppableHTTP(HTTPConnection):
    """A connection for requests within `Stop.ends_request`."""

    stop: Stop | None = None

    def request(self, *args: Any, **options: Any) -> None:
        if self.is_closed:
            self.connect()
        self.timeout = _request.idle  # urllib3 would send the body within the time to connect
        self.sock.settimeout(_request.idle)
        _request.stop.use(self)
        _request.stop.check()
        super().request(*args, **options)

    def shut_down(self) -> None:
        """Let the thread that waits for this connection go on, with an error."""
        # SSLSocket's own method turns encryption off before the socket is shut. And a proxy that is
        # reached by TLS has a socket of another kind, which only its time of silence ends.
        if isinstance(self.sock, socket.socket):
            with suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class StoppableHTTPS(StoppableHTTP, HTTPSConnection):
    """The same over TLS."""
