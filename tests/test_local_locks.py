"""A worker that stands still in mid-write: others go on, and it changes nothing when it thaws."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from storage import ObjectChanged, ObjectNotFound, StorageUnavailable
from stores.local import locks as local_locks
from stores.local.objects import LocalObjects

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Stops where it hurts most: alone with the lock, everything compared, nothing done yet.
STANDS_STILL = """
import os, signal, sys
from pathlib import Path
from stores.local.objects import LocalObjects

objects, rename = LocalObjects(Path(sys.argv[1])), Path.{method}
def stand_still(path, target):
    if "key" in (path.name, target.name):
        os.kill(os.getpid(), signal.SIGSTOP)
    return rename(path, target)
Path.{method} = stand_still
{call}
"""
WRITES = ("replace", 'objects.write("key", b"of the frozen one")')
REPLACES = ("replace", 'objects.write_over("key", b"of the frozen one", sys.argv[2])')
REMOVES = ("rename", 'objects.delete(["key"])')


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalObjects:
    monkeypatch.setattr(local_locks, "LOCK_SECONDS", 0.05)
    return LocalObjects(tmp_path)


@pytest.fixture(params=[WRITES, REPLACES, REMOVES], ids=["write", "replace", "delete"])
def frozen(
    request: pytest.FixtureRequest, objects: LocalObjects
) -> Iterator[subprocess.Popen[str]]:
    """A process that stands still while it changes `key`, which holds "first"."""
    version = objects.write_over("key", b"first", None)
    method, call = request.param
    code = STANDS_STILL.format(method=method, call=call)
    command = [sys.executable, "-c", code, objects.root, version]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        yield process
        process.kill()


def thawed(process: subprocess.Popen[str]) -> str:
    """What it says of itself in the end."""
    process.send_signal(signal.SIGCONT)
    return process.communicate()[1]


def test_others_write_on_and_the_frozen_one_finds_its_claim_gone(
    objects: LocalObjects, frozen: subprocess.Popen[str]
) -> None:
    version = objects.write_over("key", b"second", objects.get("key", None).version)
    objects.write_over("key", b"third", version)
    assert "StorageUnavailable: this worker stood still" in thawed(frozen)
    assert objects.get("key", None).data == b"third"


def test_a_removed_object_does_not_come_back(
    objects: LocalObjects, frozen: subprocess.Popen[str]
) -> None:
    objects.delete(["key"])
    assert "StorageUnavailable: this worker stood still" in thawed(frozen)
    with pytest.raises(ObjectNotFound):
        objects.get("key", None)


def test_a_lock_is_waited_for_once_and_not_at_every_write(
    objects: LocalObjects, frozen: subprocess.Popen[str]
) -> None:
    objects.write("key", b"second")
    local_locks.LOCK_SECONDS = 1e9
    objects.write("key", b"third")
    LocalObjects(objects.root).write("key", b"fourth")
    assert thawed(frozen)


def test_a_full_disk_still_lets_go_of_what_is_removed(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("key", b"large")

    def no_space(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", no_space)
    objects.delete(["key"])
    with pytest.raises(ObjectNotFound):
        objects.get("key", None)


def test_who_finds_the_lock_closed_goes_on_with_the_next(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others close it in the moment between the lock and the look; nothing is lost but that."""
    objects.write("key", b"first")
    (lock,) = (objects.root / ".local-store" / "locks").iterdir()

    def make_and_close(claim: Path, target: Path) -> Path:
        lock.with_name(f"{lock.name}.1").touch()
        return replace(claim, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", make_and_close)
    objects.write("key", b"second")
    assert objects.get("key", None).data == b"second"


def test_a_lock_whose_holders_move_is_waited_for(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For far longer than it takes to close one whose holder stands still."""
    objects.write("key", b"first")
    (lock,) = (objects.root / ".local-store" / "locks").iterdir()
    monkeypatch.setattr(local_locks, "LOCK_SECONDS", 0)
    holder, seen = lock.open(), []

    def another_claim_each_time(_: Path) -> list[str]:
        seen.append(f"{lock.name}.0.{len(seen)}")
        if len(seen) == 50:
            holder.close()
        return seen[-1:]

    with holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(os, "listdir", another_claim_each_time)
        objects.write("key", b"second")
    assert len(seen) == 50
    assert not lock.with_name(f"{lock.name}.1").exists()


def test_reading_needs_no_lock(objects: LocalObjects, frozen: subprocess.Popen[str]) -> None:
    assert objects.get("key", None).data == b"first"
    assert [row.key for row in objects.list("", "", 10).objects] == ["key"]


def test_no_change_is_lost_when_every_lock_is_closed_at_once(tmp_path: Path) -> None:
    """Nobody waits here, so everyone is left behind now and then, in all the wrong places. Whoever
    is told that a change was made has made it, once, and who is told that it was not has not."""
    LocalObjects(tmp_path).write_over("counter", b"0 at first", None)
    with get_context("spawn").Pool(4) as pool:
        left_behind = pool.starmap(count_up, [(tmp_path, 50)] * 4)
    assert int(LocalObjects(tmp_path).get("counter", None).data.split()[0]) == 200
    assert sum(left_behind)  # it was as hard as it should be
    assert list((tmp_path / ".local-store" / "writing").iterdir()) == []


def count_up(root: Path, times: int) -> int:
    """In a process of its own, one that dawdles. Returns how often it was left behind."""
    local_locks.LOCK_SECONDS = 0
    for name in ("exists", "replace"):
        dawdle_before(name)
    objects, left_behind = LocalObjects(root), 0
    while times:
        found = objects.get("counter", None)
        count = int(found.data.split()[0]) + 1
        try:
            mine = f"{count} by {secrets.token_hex(8)}"
            objects.write_over("counter", mine.encode(), found.version)
            times -= 1
        except ObjectChanged:
            pass
        except StorageUnavailable:
            left_behind += 1
    return left_behind


def dawdle_before(name: str) -> None:
    """Whatever the lock and the store do to a path, others may do something just before."""
    call = getattr(Path, name)

    def dawdling(*args: object) -> object:
        time.sleep(random.random() * 0.003)  # noqa: S311 - no secret
        return call(*args)

    setattr(Path, name, dawdling)
