"""The worker's side of the template process: asks it for a fork, and does without it if need be."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import JsonValue

from child.environment import child_environment
from child.guardian import adopt_orphans, children

log = logging.getLogger(__name__)

#: What the interpreter runs, see `jobs.template`, with the number of a socket as its argument.
ENTRY: tuple[str, ...] = ("-m", "jobs.template")
#: Bytes. More than a socket may take at once, and than any attempt has to say.
REQUEST_LIMIT: Final = 1 << 16
#: A fork that takes longer than this is not worth waiting for.
FORK_SECONDS: Final = 5.0
#: A template that ended is started again so often, and no more: something is wrong here.
MAX_STARTS: Final = 3
_ROOT: Final = Path(__file__).resolve().parent.parent


def fork_name(template: int) -> str:
    """What a template and all that it forks are called, by its number: at most 15 characters."""
    return f"jobs-{template}"


class ForkFailed(Exception):
    """The template was asked and did not say which child it made, if any."""


class LoaderRefused(Exception):
    """What a kind loads cannot be kept, and never will be; says why."""


class Forked:
    """A child of this process that another one forked; what of `Popen` a child's runner needs."""

    #: The numbers of those that are to be waited for, by whoever has the object.
    known: ClassVar[set[int]] = set()

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.known.add(pid)
        #: -N when ended by signal N; None until it was waited for.
        self.returncode: int | None = None

    def wait(self) -> int:
        """Reap it. Blocks until it has ended."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
            self.known.discard(self.pid)
        return self.returncode

    def kill(self) -> None:
        """End it at once, if it has not been reaped."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Template:
    """A process with torch imported, from when it is ready until it ends."""

    def __init__(self, entry: tuple[str, ...] | None = None) -> None:
        """`entry`: instead of `ENTRY`. Begins nothing."""
        self._entry = ENTRY if entry is None else entry
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._requests: socket.socket | None = None
        self._starts = 0
        self._turn = asyncio.Lock()
        self._answer: asyncio.Task[Forked] | None = None
        self._refused: str | None = None
        #: Whether forks can be had; and whether it is known if they ever will.
        self.ready, self.begun = asyncio.Event(), asyncio.Event()

    def start(self) -> None:
        """Begin to import, in the background."""
        self._starts += 1
        try:
            adopt_orphans()  # which its forks are
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            log.warning("no template process: %s; attempts start slower", error)
            return
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - nothing in it comes from a caller
                    [sys.executable, *self._entry, str(theirs.fileno())],
                    cwd=_ROOT,
                    env=child_environment(os.environ, {}),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                log.warning("no template process: %s; attempts start slower", error)
                return
        self._listen(ours)

    async def fork(self, pipes: list[int], environment: Mapping[str, str]) -> Forked | None:
        """A new child of this process that is `python -m jobs` on `pipes`.

        `pipes` are control, events and output, the child's ends. None: the template is not ready,
        or is no longer there; then it is begun anew, for the next ones.

        Raises:
            ForkFailed: perhaps after all there is a child at these pipes. It ends with them.
        """
        return await self._request({"environment": dict(environment), "folder": str(_ROOT)}, pipes)

    async def loaded(
        self, kind: str, params: dict[str, JsonValue], inputs: Path, *, seconds: float
    ) -> Template | None:
        """Another template, whose forks find what `kind` keeps; None: it could not be had.

        Raises:
            LoaderRefused: the kind loads in a way that no fork can do with.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = {"kind": kind, "params": params, "inputs": str(inputs)}
        other = Template(())
        try:
            with theirs, suppress(ForkFailed):
                other._process = await self._request({"load": order}, [theirs.fileno()])
        finally:
            if other._process is None:
                ours.close()
        if other._process is None:
            return None
        other._listen(ours)
        try:
            async with asyncio.timeout(seconds):
                await other.begun.wait()
        except BaseException as error:
            other.close()
            if not isinstance(error, TimeoutError):
                raise
        if other._refused is not None:
            raise LoaderRefused(other._refused)
        return other if other.ready.is_set() else None

    @property
    def pid(self) -> int | None:
        """Its number while it lives."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End it, after it has answered whoever has asked it. What it forked goes on.

        One that does not answer lives on, with all that it keeps, for `FORK_SECONDS`.
        """
        self.ready.clear()  # for those who wait for their turn to ask
        if self._answer is not None and not self._answer.done():
            self._answer.add_done_callback(lambda _: self._forget())
        else:
            self._forget()

    async def _request(self, request: dict[str, Any], pipes: list[int]) -> Forked | None:
        data = json.dumps(request).encode()
        if len(data) > REQUEST_LIMIT:
            return None
        await self._turn.acquire()
        requests = None
        try:
            requests = self._ask(data, pipes)
        finally:
            if requests is None:
                self._turn.release()
        if requests is None:
            return None
        answer = self._answer = asyncio.create_task(self._hear_answer(requests))
        answer.add_done_callback(lambda _: self._turn.release())
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_end_unwanted)  # nobody else would know of it
            raise

    def _ask(self, request: bytes, pipes: list[int]) -> socket.socket | None:
        """Send the request, at once: who is cancelled closes the pipes. None: nobody takes it."""
        if not self.ready.is_set() or self._requests is None:
            if self._process is None and 0 < self._starts < MAX_STARTS:
                self.start()
            return None
        try:
            socket.send_fds(self._requests, [request], pipes)
        except OSError as error:
            self._give_up(error)
            return None
        return self._requests

    async def _hear_answer(self, requests: socket.socket) -> Forked:
        try:
            async with asyncio.timeout(FORK_SECONDS):
                answer = await asyncio.get_running_loop().sock_recv(requests, 4096)
            pid = int(json.loads(answer)["pid"])
        except (OSError, ValueError, TimeoutError) as error:
            self._give_up(error)
            raise ForkFailed from error
        if pid < 0:
            raise ForkFailed
        return Forked(pid)

    def _give_up(self, error: Exception) -> None:
        log.warning("the template process failed: %r; attempts start slower", error)
        self._forget()

    def _listen(self, requests: socket.socket) -> None:
        requests.setblocking(False)
        self._requests = requests
        asyncio.get_running_loop().add_reader(requests, self._hear_readiness)

    def _hear_readiness(self) -> None:
        assert self._requests is not None
        self.begun.set()
        asyncio.get_running_loop().remove_reader(self._requests)
        said = b""
        with suppress(OSError):
            said = self._requests.recv(4096)
        if not said:
            log.warning("a template process ended before it was ready; attempts start slower")
            self._forget()
        elif refused := json.loads(said).get("refused"):
            self._refused = refused
            self._forget()
        else:
            self.ready.set()

    def _forget(self) -> None:
        self.ready.clear()
        if self._requests is not None:
            with suppress(RuntimeError):  # the loop is closed
                asyncio.get_running_loop().remove_reader(self._requests)
            self._requests.close()
            self._requests = None
        if self._process is not None:
            self._process.kill()
            threading.Thread(
                target=_reap_template, args=(self._process,), name="reap", daemon=True
            ).start()
            self._process = None


def _end_unwanted(answer: asyncio.Task[Forked]) -> None:
    """A fork that nobody wants any more: its pipes are closed, which ends it and all below it."""
    if not answer.cancelled() and not answer.exception():
        threading.Thread(target=answer.result().wait, name="reap", daemon=True).start()


def _reap_template(template: subprocess.Popen[bytes] | Forked) -> None:
    """Wait for its end, and for its forks of which nobody has heard. Blocks, at times for long.

    Those end by themselves, as nobody holds the other ends of their pipes.
    """
    template.wait()
    # From here on it has no more forks: who is not known now will never be.
    while strays := [pid for pid in children() if _is_stray(pid, template.pid)]:
        for pid in strays:
            with suppress(ChildProcessError):  # it was reaped with its group
                os.waitpid(pid, 0)


def _is_stray(child: int, template: int) -> bool:
    if child in Forked.known:
        return False
    try:
        return Path(f"/proc/{child}/comm").read_text().strip() == fork_name(template)
    except OSError:  # it is gone
        return False
