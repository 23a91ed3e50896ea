"""A loaded model is kept between consecutive processes: the same one, and not for long."""

import asyncio
import os
import signal

import pytest

from attempts.kept_models import digest
from attempts.own_files import OwnFolder
from child import forks, runner
from jobs import JOBS, Job, Keep
from tests.children import UNRULY, is_running, unruly_entry
from tests.crowd import until
from tests.unruly_jobs import Kept, load_kept, use_kept
from worker.workplace import Workplace


@pytest.fixture
async def worker(crowd, monkeypatch):
    """One whose template is ready, and that has input folders with models."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # forks have a pool of threads, as by default
    monkeypatch.setitem(
        JOBS, "use_kept", Job(Kept, use_kept, keep=Keep(lambda _: "model", load_kept))
    )
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))
    monkeypatch.setattr(forks, "ENTRY", unruly_entry("torch"))
    worker = crowd.worker(template=True, slots=2)
    template = worker.manager.parts.kept.plain
    template.start()
    await template.ready.wait()
    for name in ("a", "b", "broken", "threads"):
        await crowd.store.put(f"shared/{name}", name.encode())
    yield worker
    worker.manager.parts.kept.drop()
    template.close()


async def use(worker, process_id, model="a", **params):
    return await worker(
        "start",
        process_id,
        kind="use_kept",
        process_id=process_id,
        params=params,
        inputs={"model": f"key:shared/{model}"},
    )


def kept_by(worker):
    kept = worker.manager.parts.kept._kept
    return kept.pid if kept else None


async def test_consecutive_processes_find_what_was_loaded_once(worker):
    first, second = await use(worker, "p1"), await use(worker, "p2")
    assert first["status"] == second["status"] == "completed", first
    assert first["result"]["kept"] is second["result"]["kept"] is True
    assert first["result"]["loaded_by"] == second["result"]["loaded_by"] == kept_by(worker)


async def test_another_model_is_never_taken_for_it(worker):
    first, second = await use(worker, "p1", "a"), await use(worker, "p2", "b")
    assert (first["result"]["text"], second["result"]["text"]) == ("a", "b")
    assert first["result"]["loaded_by"] != second["result"]["loaded_by"]
    assert not is_running(first["result"]["loaded_by"])


async def test_another_kind_drops_it(worker):
    result = (await use(worker, "p1"))["result"]
    assert (await worker.start("p2"))["status"] == "completed"
    await until(lambda: not is_running(result["loaded_by"]))
    assert kept_by(worker) is None


async def test_after_a_failure_it_is_loaded_anew(worker):
    first = (await use(worker, "p1"))["result"]
    assert (await use(worker, "p2", fails=True))["status"] == "failed"
    third = (await use(worker, "p3"))["result"]
    assert third["kept"]
    assert third["loaded_by"] != first["loaded_by"]


async def test_after_a_cancel_it_is_loaded_anew(worker):
    first = (await use(worker, "p1"))["result"]
    task = asyncio.create_task(use(worker, "p2", sleeps=60))
    await worker.seen("p2", "running", step=1)
    await worker("cancel", process_id="p2")
    assert (await task)["status"] == "cancelled"
    assert (await use(worker, "p3"))["result"]["loaded_by"] != first["loaded_by"]


async def test_whoever_is_just_being_forked_from_it_is_while_another_slot_drops_it(worker):
    first = asyncio.create_task(use(worker, "p1", sleeps=60))
    await worker.seen("p1", "running", step=1)
    kept = worker.manager.parts.kept._kept
    pid = kept.pid
    os.kill(pid, signal.SIGSTOP)  # it will answer, but later
    second = asyncio.create_task(use(worker, "p2"))
    await until(kept._turn.locked)
    await worker("cancel", process_id="p1")
    await first
    assert kept_by(worker) is None
    os.kill(pid, signal.SIGCONT)
    assert (await second)["result"]["loaded_by"] == pid
    await until(lambda: not is_running(pid))


async def test_it_is_dropped_when_nobody_has_used_it_for_a_while(crowd, worker):
    kept = worker.manager.parts.kept
    kept._settings = kept._settings.model_copy(update={"keep_seconds": 0.05})
    pid = (await use(worker, "p1"))["result"]["loaded_by"]
    await until(lambda: not is_running(pid))
    assert (await use(worker, "p2"))["result"]["kept"]


async def test_what_takes_too_much_memory_is_not_kept(worker):
    kept = worker.manager.parts.kept
    kept._settings = kept._settings.model_copy(update={"keep_bytes": 1000})  # the file is smaller
    first = (await use(worker, "p1"))["result"]
    assert first["kept"]  # how much it takes is known when it is loaded
    await until(lambda: not is_running(first["loaded_by"]))
    assert kept_by(worker) is None


async def test_a_file_that_is_too_large_is_not_even_loaded(worker):
    kept = worker.manager.parts.kept
    kept._settings = kept._settings.model_copy(update={"keep_bytes": 0})
    assert (await use(worker, "p1"))["result"]["kept"] is False


async def test_two_at_a_time_share_it(worker):
    ends = await asyncio.gather(use(worker, "p1", sleeps=0.5), use(worker, "p2", sleeps=0.5))
    assert len({end["result"]["loaded_by"] for end in ends}) == 1


async def test_what_cannot_be_loaded_fails_in_the_attempt_with_its_own_words(worker):
    end = await use(worker, "p", "broken")
    assert end["failure"]["message"] == "ValueError: no model"


async def test_what_is_loaded_in_threads_is_not_kept_and_the_log_says_why_once(worker, caplog):
    """No fork has the threads; a lock that one of them holds would stay locked in all forks."""
    ends = [await use(worker, process_id, "threads") for process_id in ("p1", "p2")]
    assert [end["result"]["kept"] for end in ends] == [False, False]
    [line] = [record.message for record in caplog.records if "is kept" in record.message]
    assert "use_kept: its loader left 1 threads running" in line


async def test_one_that_was_killed_costs_nobody_an_attempt(worker):
    pid = (await use(worker, "p1"))["result"]["loaded_by"]
    os.kill(pid, signal.SIGKILL)
    assert (await use(worker, "p2"))["status"] == "completed"


@pytest.fixture
def own(tmp_path):
    own = OwnFolder(Workplace(tmp_path), "p.1")
    own.make()
    return own


def test_the_content_counts_and_not_when_or_where_it_was_written(own):
    for name, text in {"1": "same", "2": "same", "3": "else"}.items():
        (own.path / name / "model" / "deep").mkdir(parents=True)
        (own.path / name / "model" / "deep" / "file").write_text(text)
    first, second, third = (digest(own, f"{name}/model") for name in "123")
    assert first == second != third
    assert first[1] == len("same")


def test_a_single_file_is_content_too_and_a_link_is_none(own, tmp_path):
    (own.path / "file").write_text("same")
    assert digest(own, "file")[1] == len("same")
    (own.path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="it is a link"):
        digest(own, "link")
