"""Workers that die exactly where a test says: at the K-th write to the store.

Each runs one delivery of `start` through a `Handler`, without the SDK, in a process of its own.
This script is their nursery: it has everything imported and forks one worker per line of its
input, since half a second of imports for each of some hundred deaths would be the whole test.
A worker, like all it started, dies with the nursery, and that when its input is closed.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from child.guardian import adopt_orphans
from rp_handler import Handler
from tests.faulty_store import WRITES
from tests.kit import Reply, settings
from tests.servers import Place, open_place
from tests.worker_process import FOREIGN, ROOT

if TYPE_CHECKING:
    from storage import Store

PR_SET_PDEATHSIG = 1


class Death(NamedTuple):
    """When somebody dies, and who: the child's whole group, the worker, or both at once."""

    moment: str  # "before" or "after"
    write: int
    victim: str  # "worker", "child" or "both"
    #: Counts only writes to keys that hold this.
    key: str = ""


class Life(NamedTuple):
    """What a worker is born to do."""

    place: Place
    #: Its disk; what it leaves behind lies here too.
    folder: str
    request: dict[str, Any]
    job_id: str
    settings: dict[str, Any]
    death: Death | None = None

    def to_json(self) -> str:
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        *fields, death = json.loads(text)
        return cls(*fields, death=Death(*death) if death else None)

    @property
    def writes(self) -> list[str]:
        """The writes it has begun, in order: `name key`."""
        path = Path(self.folder, "writes.txt")
        return path.read_text().splitlines() if path.exists() else []

    @property
    def reply(self) -> Reply | None:
        """What it answered; None if it did not live to."""
        path = Path(self.folder, "reply.json")
        return json.loads(path.read_text()) if path.exists() else None


# ---- a worker


class NumberedWrites:
    """A store that counts what is written to it, and tells `at` before and after each."""

    def __init__(self, behind: Store, at: Any, log: Path, counted: str) -> None:
        self._behind = behind
        self._at = at
        self._log = log
        self._counted = counted
        self._numbers = itertools.count(1)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._behind, name)
        return partial(self._write, name, found) if name in WRITES else found

    async def _write(self, name: str, write: Any, *args: Any, **options: Any) -> Any:
        key = args[1] if name.startswith("upload") else args[0]
        if self._counted not in str(key):
            return await write(*args, **options)
        number = next(self._numbers)
        with self._log.open("a") as log:
            log.write(f"{name} {key}\n")
        await self._at("before", number)
        result = await write(*args, **options)
        await self._at("after", number)
        return result


async def deliver(life: Life) -> Reply:
    """Live: one delivery, and an early end if that is what was ordered."""

    async def at(moment: str, number: int) -> None:
        if life.death and life.death[:2] == (moment, number):
            _strike(life.death.victim, handler)

    folder = Path(life.folder)
    store = open_place(life.place)
    counted = life.death.key if life.death else ""
    numbered: Any = NumberedWrites(store, at, folder / "writes.txt", counted)
    handler = Handler(numbered, settings(folder / "disk", **life.settings), way_in="api")
    return await handler({"id": life.job_id, "input": life.request})


def _strike(victim: str, handler: Handler) -> None:
    if victim != "worker":
        for run in handler.manager.runs:
            if run._child and run._child._guardian.returncode is None:
                os.killpg(run._child.pid, signal.SIGKILL)
    if victim != "child":
        os.kill(os.getpid(), signal.SIGKILL)


def live(life: Life) -> NoReturn:
    """In a process that was forked just now."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.setsid()
    log = os.open(Path(life.folder, "log.txt"), os.O_WRONLY | os.O_CREAT)
    for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(file, stream)
    try:
        reply = asyncio.run(deliver(life))
        Path(life.folder, "reply.json").write_text(json.dumps(reply))
    except BaseException:  # noqa: BLE001 - nothing of it may run on into the nursery's loop
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


# ---- the nursery


def main() -> None:
    """Fork a worker per line; tell `born LINE PID` and `ended PID STATUS`."""
    adopt_orphans()  # what a dead worker leaves behind stays findable, and is reaped
    signal.signal(signal.SIGCHLD, _reap)
    for number, line in enumerate(sys.stdin):
        life = Life.from_json(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # born is told before ended
        if (pid := os.fork()) == 0:
            live(life)
        _say(f"born {number} {pid}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _reap(*_: object) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


# ---- the test's side


class Nursery:
    """`async with Nursery() as nursery: await nursery.run(life)`; all of it ends with the block."""

    async def __aenter__(self) -> Self:
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            cwd=ROOT,
            env=own,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._numbers = itertools.count()
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._listener

    async def run(self, life: Life) -> int:
        """See a life to its end: the exit status, negative for a signal."""
        assert self._process.stdin is not None
        Path(life.folder).mkdir(parents=True)
        ended = self._ends[next(self._numbers)] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(life.to_json().encode() + b"\n")
        return await ended

    def living(self) -> list[psutil.Process]:
        """Every process that is left of any life, be it as a zombie."""
        return psutil.Process(self._process.pid).children(recursive=True)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        numbers: dict[str, int] = {}
        async for line in self._process.stdout:
            match line.decode().split():
                case ["born", number, pid]:
                    numbers[pid] = int(number)
                case ["ended", pid, status] if pid in numbers:
                    self._ends.pop(numbers.pop(pid)).set_result(int(status))
        for ended in self._ends.values():
            ended.set_exception(AssertionError("the nursery is gone"))


if __name__ == "__main__":
    main()
