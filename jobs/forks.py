"""The worker's side of the template process: asks it for a fork, and does without it if need be."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.child_environment import child_environment

log = logging.getLogger(__name__)

#: A fork that takes longer than this is not worth waiting for.
FORK_SECONDS: Final = 5.0
#: A template that ended is started again so often, and no more: something is wrong here.
MAX_STARTS: Final = 3
_ROOT: Final = Path(__file__).resolve().parent.parent


class Template:
    """A process with torch imported, from when it is ready until it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._starts = 0
        self._turn = asyncio.Lock()
        #: Whether forks can be had.
        self.ready = asyncio.Event()

    def start(self) -> None:
        """Begin to import, in the background."""
        self._starts += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - nothing in it comes from a caller
                    [sys.executable, "-m", "jobs.template", str(theirs.fileno())],
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
        ours.setblocking(False)
        self._requests = ours
        asyncio.get_running_loop().add_reader(ours, self._hear_readiness)

    async def fork(self, pipes: list[int], environment: Mapping[str, str]) -> int | None:
        """A new child of this process that is `python -m jobs` on `pipes`: its number.

        `pipes` are control, events and output, the child's ends. None: there is no template, or it
        failed; what it was handed is closed there.
        """
        async with self._turn:
            if not self.ready.is_set():
                return None
            asking = asyncio.create_task(self._ask(pipes, environment))
            try:
                return await asyncio.shield(asking)
            except asyncio.CancelledError:
                # What was begun must not be left behind: nobody would know of it.
                pid = await asking
                if pid is not None:
                    _end(pid)
                raise

    def close(self) -> None:
        """End it. What it forked goes on."""
        self._forget()

    async def _ask(self, pipes: list[int], environment: Mapping[str, str]) -> int | None:
        assert self._requests is not None
        loop, requests = asyncio.get_running_loop(), self._requests
        request = {"environment": dict(environment), "folder": str(_ROOT)}
        try:
            socket.send_fds(requests, [json.dumps(request).encode()], pipes)
            async with asyncio.timeout(FORK_SECONDS):
                answer = await loop.sock_recv(requests, 4096)
            pid = int(json.loads(answer)["pid"])
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("the template process failed: %r; attempts start slower", error)
            self._forget()
            return None
        return pid if pid > 0 else None

    def _hear_readiness(self) -> None:
        assert self._requests is not None
        asyncio.get_running_loop().remove_reader(self._requests)
        with suppress(OSError):
            if self._requests.recv(4096):
                self.ready.set()
                return
        log.warning("the template process ended before it was ready; attempts start slower")
        self._forget()

    def _forget(self) -> None:
        self.ready.clear()
        if self._requests is not None:
            with suppress(RuntimeError):  # the loop is closed
                asyncio.get_running_loop().remove_reader(self._requests)
            self._requests.close()
            self._requests = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
    os.waitpid(pid, 0)
