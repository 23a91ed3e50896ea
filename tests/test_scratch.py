"""What dead workers left on a machine's disk goes; what a living one works on stays."""

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from records.cache import Unsent
from retention.clean_run import CleanReport
from retention.scratch import tidy_scratch
from tests.aged import ended
from tests.kit import settings
from worker.workplace import Workplace, held_if_abandoned

ROOT = Path(__file__).parent.parent
#: A worker that has taken its place, and then works until it is killed.
WORKER = """
import sys, time
from pathlib import Path
from worker.workplace import Workplace, held_if_abandoned
place = Workplace(Path(sys.argv[1]) / "work")
place.claim()
(place.folder / "p.1").mkdir()
(place.folder / "p.1" / "outputs").write_bytes(b"x" * 1000)
print(place.folder, flush=True)
time.sleep(600)
"""


def tidy(scratch, *, dry_run=False, **changes):
    """How many of each class went."""
    report = CleanReport(dry_run=dry_run)
    tidy_scratch(settings(scratch, **changes), report)
    return report.counts()


def test_the_work_of_a_killed_worker_goes_and_that_of_a_living_one_stays(tmp_path):
    """However old they are."""
    command = [sys.executable, "-c", WORKER, tmp_path]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as living,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as dead,
    ):
        folders = [Path(each.stdout.readline().strip()) for each in (living, dead)]
        for folder in folders:
            os.utime(folder, (0, 0))
        assert tidy(tmp_path) == {}
        dead.kill()
        dead.wait()
        assert tidy(tmp_path, dry_run=True) == {"work of dead workers": 1}
        assert folders[1].exists()
        assert tidy(tmp_path) == {"work of dead workers": 1}
        assert [folder.exists() for folder in folders] == [True, False]
        living.send_signal(signal.SIGKILL)


def test_what_a_dead_worker_left_goes_whatever_it_is(removed_however_deep, tmp_path):
    """Deeper than a path can be long, pipes, and links, which are not followed."""
    left = tmp_path / "work" / "worker-0123456789abcdef"
    (left / "p.1").mkdir(parents=True)
    os.mkfifo(left / "p.1" / "pipe")
    (left / "p.1" / "link").symlink_to(tmp_path)
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n"
    subprocess.run([sys.executable, "-c", deep], cwd=left / "p.1", check=True)
    (tmp_path / "work" / "worker-fedcba9876543210").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    assert tidy(tmp_path) == {"work of dead workers": 1}
    assert not left.exists()
    assert (tmp_path / "mine").exists()


def test_a_place_that_is_removed_while_it_is_taken_is_made_again(tmp_path):
    """Between its making and its lock it looks as if a dead worker had left it."""
    place = Workplace(tmp_path / "work")
    exists, removed = Path.exists, []

    def remove_first(path):
        if path == place.folder and not removed:
            removed.append(path)
            path.rmdir()
        return exists(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", remove_first)
        place.claim()
    assert removed
    assert place.folder.exists()
    assert tidy(tmp_path) == {}


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_worker_works_and_nobody_takes_it_for_dead(tmp_path, error, monkeypatch):
    """Nobody: neither who has no locks either, nor who has some, on another machine perhaps."""

    def no_locks(*_):
        raise OSError(error, os.strerror(error))

    place = Workplace(tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        place.claim()
        with held_if_abandoned(place.folder) as abandoned:
            assert not abandoned
        assert tidy(tmp_path) == {}
    assert tidy(tmp_path) == {}
    assert place.folder.exists()


async def test_an_attempt_works_where_nobody_tidies_up(crowd, tmp_path):
    worker = crowd.worker()
    running = await worker.running("p")
    (folder,) = (worker.settings.scratch_dir / "work").iterdir()
    tidied = await asyncio.to_thread(tidy, worker.settings.scratch_dir)
    assert tidied == {}
    assert [each.name.partition(".")[0] for each in folder.iterdir()] == ["p"]
    await worker("cancel", process_id="p")
    await running


def old(path, days):
    then = time.time() - days * 86400
    os.utime(path, (then, then))


async def test_old_copies_go_but_not_what_is_owed_to_the_store(crowd):
    worker = crowd.worker()
    await worker.start("p")
    await worker.start("q")
    cache = worker.manager.leases.cache
    await cache.journal(Unsent(record=ended("q", 1), proof=""))
    records = cache._place.folder
    (records / ".r.json.0123456789abcdef").write_text("half")
    (records / ".r.unsent.0123456789abcdef").write_text("half")
    for path in records.iterdir():
        old(path, 20)
    scratch = worker.settings.scratch_dir
    tidied = await asyncio.to_thread(tidy, scratch)
    assert tidied == {"old copies of records": 2}  # what was half written
    tidied = await asyncio.to_thread(tidy, scratch, process_days=10)
    assert tidied == {"old copies of records": 2}
    assert [path.name for path in records.iterdir()] == ["q.unsent"]


@pytest.mark.parametrize("owing", [True, False])
async def test_the_records_of_a_dead_worker_go_once_they_are_old_but_not_its_journal(crowd, owing):
    """Of a store that no worker on this machine uses any more, so that none adopts them."""
    worker = crowd.worker()
    await worker.start("p")
    cache = worker.manager.leases.cache
    if owing:
        await cache.journal(Unsent(record=ended("p", 1), proof=""))
    await worker.die()
    folder, scratch = cache._place.folder, worker.settings.scratch_dir
    await asyncio.to_thread(tidy, scratch)
    assert (folder / "p.json").exists()
    old(folder / "p.json", 40)
    await asyncio.to_thread(tidy, scratch)
    assert folder.exists() == owing


def test_what_no_worker_put_there_is_nobodys_to_remove(tmp_path):
    """A scratch folder may be a folder that somebody had before."""
    theirs = [
        "work/my_project/thesis.txt",
        "work/worker-1/thesis.txt",
        "records/2023/a.json",
        "records/2023/.draft",
        "records/0123456789abcdef/.draft",
        "records/0123456789abcdef/a.json",
        "records/0123456789abcdef/worker-1/a.json",
        "records/0123456789abcdef/worker-0123456789abcdef/a.txt",
    ]
    for name in theirs:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        old(path, 1000)
        old(path.parent, 1000)
    assert tidy(tmp_path, process_days=1) == {}
    assert all((tmp_path / name).exists() for name in theirs)


@pytest.mark.parametrize(
    "linked", ["records", f"records/{'0' * 16}", f"records/{'0' * 16}/worker-{'1' * 16}"]
)
def test_a_link_to_a_foreign_folder_is_not_followed_to_old_copies(tmp_path, linked):
    """A job without Landlock can lay one at any level."""
    scratch, foreign = tmp_path / "scratch", tmp_path / "foreign"
    copy = scratch / "records" / ("0" * 16) / f"worker-{'1' * 16}" / "a.json"
    copy.parent.mkdir(parents=True)
    copy.write_text("{}")
    old(copy, 1000)
    (scratch / linked).rename(foreign)
    (scratch / linked).symlink_to(foreign)
    assert tidy(scratch, process_days=1) == {}
    assert copy.exists()


def test_a_link_to_a_foreign_folder_is_not_followed_to_work(tmp_path):
    scratch, foreign = tmp_path / "scratch", tmp_path / "foreign"
    scratch.mkdir()
    thesis = foreign / f"worker-{'1' * 16}" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.touch()
    (scratch / "work").symlink_to(foreign)
    assert tidy(scratch) == {}
    assert thesis.exists()


def test_a_place_that_cannot_be_marked_leaves_no_descriptor(tmp_path, monkeypatch):
    """Neither locked nor marked, it is not held."""

    def fails(error):
        def fail(*_, **__):
            raise OSError(error, os.strerror(error))

        return fail

    closed = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda handle: (closed.append(handle), close(handle)))
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    monkeypatch.setattr(Path, "touch", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        Workplace(tmp_path / "work").claim()
    assert len(closed) == 1


def test_a_disk_without_anything_is_no_error(tmp_path):
    assert tidy(tmp_path / "nowhere") == {}
