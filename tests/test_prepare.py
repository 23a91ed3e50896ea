"""What a kind needs is set up once per machine or volume, whoever comes first, whatever fails."""

import asyncio
import os
import signal

import pytest

from child import runner
from jobs import JOBS
from tests import preparing_job
from tests.crowd import on_every_store, until


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """What two workers share."""
    monkeypatch.setitem(JOBS, "prepares", preparing_job.KINDS["prepares"])
    monkeypatch.setattr(runner, "ENTRY", (preparing_job.__file__,))
    for name, value in {
        "PREPARED_LOG": tmp_path / "log",
        "PREPARE_SECONDS": "0.2",
        "PREPARE_FAILS": tmp_path / "fails",
    }.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "volume"


def worker_on(crowd, volume, **changes):
    names = "PREPARED_LOG,PREPARE_SECONDS,PREPARE_FAILS"
    return crowd.worker(prepare_dir=volume, child_env=names, **changes)


def times_set_up(volume):
    log = volume.parent / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


async def start(worker, process_id):
    return await worker("start", process_id, kind="prepares", process_id=process_id)


@on_every_store
async def test_the_first_attempt_sets_up_and_the_next_ones_find_it(crowd, volume):
    worker = worker_on(crowd, volume)
    for process_id in ("a", "b"):
        reply = await start(worker, process_id)
        assert reply["status"] == "completed", reply
        assert reply["result"]["weights"] == "weights"
    assert times_set_up(volume) == 1


@on_every_store
async def test_two_workers_on_one_volume_do_not_do_it_twice(crowd, volume):
    workers = [worker_on(crowd, volume, slots=2) for _ in range(3)]
    replies = await asyncio.gather(
        *(start(worker, f"p{number}") for number, worker in enumerate(workers * 2))
    )
    assert {reply["status"] for reply in replies} == {"completed"}
    assert times_set_up(volume) == 1


async def test_while_it_is_set_up_the_process_says_so_and_shows_how_far(crowd, volume, monkeypatch):
    monkeypatch.setenv("PREPARE_SECONDS", "2")
    worker = worker_on(crowd, volume)
    task = asyncio.create_task(start(worker, "p"))
    view = await worker.until("p", lambda v: v["progress"] and v["progress"]["step"] > 1)
    assert view["why"]["code"] == "preparing"
    assert view["progress"]["message"] == "fetching weights"
    reply = await task
    assert (reply["status"], reply["progress"]) == ("completed", None)


async def test_who_waits_for_another_says_so_and_can_be_cancelled(crowd, volume, monkeypatch):
    monkeypatch.setenv("PREPARE_SECONDS", "60")
    first, second = worker_on(crowd, volume), worker_on(crowd, volume)
    tasks = [asyncio.create_task(start(first, "p"))]
    await until(lambda: times_set_up(volume))
    tasks.append(asyncio.create_task(start(second, "q")))
    await second.until(
        "q", lambda v: v["progress"] and "another worker" in v["progress"]["message"]
    )
    for worker, process_id in ((second, "q"), (first, "p")):
        assert (await worker("cancel", process_id=process_id))["status"] == "cancelled"
    await asyncio.gather(*tasks)
    assert times_set_up(volume) == 1


@on_every_store
async def test_a_failed_setting_up_is_a_failure_that_may_be_retried(crowd, volume):
    worker = worker_on(crowd, volume)
    (volume.parent / "fails").touch()
    reply = await start(worker, "p")
    assert reply["failure"]["code"] == "prepare_failed"
    assert "server is away" in reply["failure"]["message"]
    assert reply["failure"]["retryable"] is True
    (volume.parent / "fails").unlink()
    reply = await start(worker, "p")
    assert (reply["status"], reply["attempt"]) == ("completed", 2)
    assert times_set_up(volume) == 2


async def test_who_is_killed_in_the_middle_leaves_nothing_that_looks_whole(
    crowd, volume, monkeypatch
):
    monkeypatch.setenv("PREPARE_SECONDS", "60")
    worker = worker_on(crowd, volume)
    task = asyncio.create_task(start(worker, "p"))
    await until(lambda: times_set_up(volume))
    [child] = worker.children()
    os.killpg(child.pid, signal.SIGKILL)
    assert (await task)["status"] == "failed"
    monkeypatch.setenv("PREPARE_SECONDS", "0")
    reply = await start(worker_on(crowd, volume), "q")
    assert reply["result"] == {"half": "not whole yet", "weights": "weights"}
    assert [path.name for path in volume.iterdir() if "building" in path.name] == []
