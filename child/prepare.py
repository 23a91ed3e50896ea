"""What a kind sets up once on a machine or volume: weights fetched, caches built.

Runs in the child of whichever attempt needs it first, so it never holds up the worker, has the
job's own log and progress, and is stopped and killed like a job. What it made appears under its
name in one rename, when it is whole; a failed one is begun anew by the next attempt.
"""

from __future__ import annotations

import errno
import fcntl
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from child.context import Emit, JobContext, JobFailed, JobStopped

#: How often somebody who waits for another's setting up looks again, in seconds.
LOOK_AGAIN_SECONDS: Final = 0.2
#: What file systems answer that have no locks.
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Prepare(NamedTuple):
    """What a kind needs before its first attempt on a machine."""

    #: Changes with what it makes: weights of another version are fetched anew, the old ones stay.
    version: str
    #: Writes everything into the folder `setup.outputs`, by the same means that a job has.
    run: Callable[[JobContext], None]


def prepared(kind: str, prepare: Prepare, root: Path, *, emit: Emit, stop: threading.Event) -> Path:
    """The folder with what `prepare` made: found, waited for, or made now.

    Raises:
        JobFailed: it could not be made (`prepare_failed`).
        JobStopped: somebody asked this attempt to end.
    """
    name = f"{kind}-{prepare.version}"
    ready = root / name
    if ready.is_dir():
        return ready
    emit({"event": "phase", "phase": "preparing"})
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{name}.lock", emit, stop):
            if not ready.is_dir():  # somebody else may have made it while we waited
                _make(prepare, root, name, emit, stop)
    except JobFailed:
        raise
    except Exception as error:
        sentence = f"setting up {kind!r} failed: {type(error).__name__}: {error}"
        raise JobFailed("prepare_failed", sentence, retryable=True) from error
    emit({"event": "phase", "phase": "running"})
    return ready


def _make(prepare: Prepare, root: Path, name: str, emit: Emit, stop: threading.Event) -> None:
    for left_behind in root.glob(f".{name}.building-*"):  # by one that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    building = root / f".{name}.building-{secrets.token_hex(8)}"
    try:
        setup = JobContext(building, emit=emit, stop=stop)
        prepare.run(setup)
        try:
            setup.outputs.rename(root / name)
        except OSError:
            # Where there are no locks, two may have made it; the first one's counts.
            if not (root / name).is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _alone(path: Path, emit: Emit, stop: threading.Event) -> Iterator[None]:
    """Nobody else on this machine or volume is within. Ends with its holder, however that dies."""
    with path.open("w") as lock:
        told = False
        while not _locked(lock.fileno()):
            if not told:
                told = True
                message = "another worker is setting this up"
                emit(
                    {
                        "event": "progress",
                        "step": 0,
                        "total": None,
                        "message": message,
                        "metrics": {},
                    }
                )
            if stop.wait(LOOK_AGAIN_SECONDS):
                raise JobStopped
        yield
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
