"""The same endpoint and processes without `await`.

Each call runs on one event loop in a thread of its own, so that both APIs are one implementation.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from podjobs.endpoint import AsyncEndpoint, AsyncProcess

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from anyio.from_thread import BlockingPortal

    from podjobs.downloads import Fetched
    from podjobs.models import RemoteFile, Row, View
    from podjobs.tracking import Event, Logged
    from podjobs.transport import Reply
    from podjobs.uploads import Uploaded


class Endpoint:
    """The workers of one endpoint; see `AsyncEndpoint` for the arguments and errors.

    `with Endpoint(...)` closes its connections at the end; without `with` they close with the
    program.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        control: str | None = None,
        key: str | None = None,
    ) -> None:
        self._running = start_blocking_portal()
        self._portal = self._running.__enter__()
        try:
            self._own = self._portal.call(lambda: AsyncEndpoint(endpoint, control=control, key=key))
        except BaseException:
            self._running.__exit__(None, None, None)
            raise

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections. Processes go on."""
        with suppress(RuntimeError):  # closed before
            self._portal.call(self._own.aclose)
            self._running.__exit__(None, None, None)

    def start(
        self,
        kind: str,
        *,
        inputs: Mapping[str, str | os.PathLike[str]] | None = None,
        params: Mapping[str, Any] | None = None,
        process_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        sent: Callable[[int], None] | None = None,
        **more_params: Any,
    ) -> Process:
        """Upload local inputs, send the start, and return a handle at once."""
        process = self._portal.call(
            lambda: self._own.start(
                kind,
                inputs=inputs,
                params=params,
                process_id=process_id,
                labels=labels,
                timeout_seconds=timeout_seconds,
                **({"sent": sent} if sent else {}),
                **more_params,
            )
        )
        return Process(process, self._portal)

    def process(self, process_id: str) -> Process:
        """A handle to a process that exists; nothing is asked yet."""
        return Process(self._own.process(process_id), self._portal)

    def processes(
        self, *, limit: int = 50, status: str | None = None, kind: str | None = None
    ) -> list[Row]:
        """The newest processes first; at most `limit`."""
        return self._portal.call(lambda: self._own.processes(limit=limit, status=status, kind=kind))

    def upload(
        self,
        source: str | os.PathLike[str],
        *,
        folder: str | None = None,
        overwrite: bool = False,
    ) -> Uploaded:
        """Bring a local folder, file or glob into an input folder; send only what is missing."""
        return self._portal.call(
            lambda: self._own.upload(source, folder=folder, overwrite=overwrite)
        )

    def kinds(self) -> Reply:
        """The kinds of job, each with the JSON schema of its params."""
        return self._portal.call(self._own.kinds)

    def health(self, *, deep: bool = False) -> Reply:
        """The state of one worker and of the store."""
        return self._portal.call(lambda: self._own.health(deep=deep))

    def metrics(self) -> Reply:
        """The figures of this worker, and of all live ones together."""
        return self._portal.call(self._own.metrics)

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """Send any action and return its reply."""
        return self._portal.call(self._own.ask, request)


class Process:
    """A process by its id; see `AsyncProcess`."""

    def __init__(self, own: AsyncProcess, portal: BlockingPortal) -> None:
        self._own = own
        self._portal = portal

    @property
    def id(self) -> str:
        """The id by which any machine finds it."""
        return self._own.id

    def status(self) -> View:
        """The process now. `not_found` until a worker has taken the start."""
        return self._portal.call(self._own.status)

    def events(self, *, logs: bool = True, resume: bool = True) -> Iterator[Event]:
        """All that happens until the process has ended, across workers and attempts."""
        events = self._own.events(logs=logs, resume=resume)
        try:
            while (event := self._portal.call(anext, events, None)) is not None:
                yield event
        finally:
            self._portal.call(events.aclose)

    def wait(self, *, resume: bool = True) -> View:
        """Wait for the end; returns the view of a completed process."""
        return self._portal.call(lambda: self._own.wait(resume=resume))

    def logs(self, *, tail: int = 100) -> list[Logged]:
        """The newest lines that the job printed."""
        return self._portal.call(lambda: self._own.logs(tail=tail))

    def files(self, pattern: str | None = None) -> list[RemoteFile]:
        """The files that it has stored so far, with links where the store has some."""
        return self._portal.call(self._own.files, pattern)

    def download(self, out: str | os.PathLike[str], pattern: str | None = None) -> list[Fetched]:
        """Fetch its files into the folder `out`: in parallel, resumed, verified, whole."""
        return self._portal.call(self._own.download, out, pattern)

    def cancel(self, *, wait_seconds: float = 60) -> View:
        """Stop it, wherever it runs."""
        return self._portal.call(lambda: self._own.cancel(wait_seconds=wait_seconds))

    def resume(self) -> Process:
        """Send the start again: the process goes on from its last checkpoint."""
        self._portal.call(self._own.resume)
        return self

    def delete(self) -> Reply:
        """Remove it with all its files, for good. It must have ended."""
        return self._portal.call(self._own.delete)
