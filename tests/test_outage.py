"""The store goes away and comes back: jobs go on, nothing is lost, nothing is made up."""

import asyncio
import errno
import os

import pytest

from records.cache import Unsent
from records.record import Status
from tests.crowd import on_every_store, until
from tests.test_cancel import start_of
from utils import utc_now
from worker.beneath import opened

LONG = {"seconds": 60, "steps": 600}


def statuses(worker):
    return [record.status for record in worker.store.stored]


async def failed_writes(worker, count):
    """Wait until so many more writes of the record have failed."""
    worker.store.forget_calls()
    await until(lambda: len(worker.store.asked("replace", key="record")) >= count)


# ---- in mid-run


@on_every_store
async def test_a_job_outlives_an_outage_and_every_transition_arrives_afterwards(crowd):
    """Trap 4. It even ends while the store is away."""
    worker = crowd.worker()
    start = await worker.running("p", steps=20, seconds=1, artifacts=1)
    worker.store.away = True
    run = worker.runs()[0]
    await until(run._child._gone.done)
    await failed_writes(worker, 2)
    assert (await crowd.record("p")).status is Status.RUNNING
    worker.store.away = False
    view = await start
    assert view["status"] == "completed"
    assert [entry["status"] for entry in view["history"]] == ["queued", "running", "completed"]
    assert (await crowd.record("p")).status is Status.COMPLETED
    assert [record.revision for record in worker.store.stored] == sorted(
        {record.revision for record in worker.store.stored}
    )


async def test_an_outage_that_began_before_the_child_did_loses_no_transition(crowd):
    worker = crowd.worker()
    pause = worker.store.pause_after("create")
    start = worker.starts("p", steps=2)
    await pause.reached.wait()
    worker.store.fail("replace", nth=None)
    pause.go.set()
    await failed_writes(worker, 3)
    worker.store._rules.clear()
    view = await start
    assert [entry["status"] for entry in view["history"]] == ["queued", "running", "completed"]


async def test_nothing_is_taken_over_because_of_an_outage(crowd):
    """To whoever comes back first every record looks old; the watch gives its owner time."""
    owner, other = crowd.worker(), crowd.worker(takeover_watch_seconds=15)
    params = {"steps": 20, "seconds": 2}
    start = await owner.running("p", **params)
    follower = other.starts("p", **params)
    await until(lambda: other.store.asked("get", key="record"))
    owner.store.away = other.store.away = True
    await failed_writes(owner, 5)
    other.store.later_seconds = 1000  # the outage was longer than a lease
    other.store.away = False
    other.store.forget_calls()
    await until(lambda: len(other.store.asked("get", key="record")) >= 2)
    owner.store.away = False
    one, two = await start, await follower
    assert one["attempt"] == two["attempt"] == 1
    assert one["revision"] == two["revision"]


# ---- what is said meanwhile


@on_every_store
async def test_the_owner_answers_from_memory_and_knows_that_the_process_lives(crowd):
    worker = crowd.worker(lease_seconds=1)  # long past it, with no store to tell
    await worker.running("p", step=1)
    worker.store.away = True
    view = await worker.until("p", lambda view: view["heartbeat_age_seconds"] > 1.2)
    assert (view["status"], view["source"], view["stale"]) == ("running", "memory", False)
    step = view["progress"]["step"]
    assert await worker.seen("p", "running", step=step + 1)


async def test_another_worker_says_how_old_its_answer_is(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    await other("process_status", process_id="p")
    other.store.away = True
    view = await other("process_status", process_id="p")
    assert (view["status"], view["source"], view["stale"]) == ("running", "cache", True)
    age = view["heartbeat_age_seconds"]
    await other.until("p", lambda later: later["heartbeat_age_seconds"] > age)


async def test_who_knows_nothing_says_that_the_store_is_away_and_never_not_found(crowd):
    """Traps 5 and 12."""
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    other.store.away = True
    for action in ("process_status", "cancel", "download"):
        reply = await other(action, process_id="p")
        assert reply["error"]["code"] == "storage_unavailable"
        assert reply["error"]["retryable"]
        assert "status" not in reply
    assert (await other("processes"))["error"]["code"] == "storage_unavailable"


async def test_what_the_store_does_not_have_is_no_answer_even_when_we_know_better(crowd):
    """The child has ended, but nobody may be told before the store is."""
    worker = crowd.worker()
    start = await worker.running("p", steps=20, seconds=1, fail_at=20)
    worker.store.away = True
    run = worker.runs()[0]
    await until(lambda: run.lease.desired.released)
    await failed_writes(worker, 2)
    assert (await worker("process_status", process_id="p"))["status"] == "running"
    worker.store.away = False
    assert (await start)["status"] == "failed"


async def test_the_journal_of_a_dead_worker_is_no_answer_but_its_copy_is(crowd):
    """What the store does not have is no answer, to the next worker on the disk neither."""
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    reborn = crowd.worker("worker-0")
    reborn.store.away = True
    recovery = asyncio.create_task(reborn.manager.recover())
    await until(lambda: reborn.store.asked("get"))
    view = await reborn("process_status", process_id="p")
    assert (view["status"], view["source"], view["stale"]) == ("running", "cache", True)
    assert view["heartbeat_age_seconds"] >= 0
    reborn.store.away = False
    await recovery
    assert (await crowd.record("p")).status is Status.FAILED


async def test_copies_and_journal_of_a_living_worker_are_its_own(crowd):
    """Another worker on its disk neither answers from them nor sends what it has not sent."""
    worker = crowd.worker()
    start = await worker.running("p", steps=20, seconds=1, fail_at=20)
    worker.store.away = True
    run = worker.runs()[0]
    await until(lambda: run.lease.desired.released)
    await failed_writes(worker, 2)
    other = crowd.worker("worker-0")
    await other.manager.recover()
    assert not other.store.asked("replace", key="record")
    assert (await crowd.record("p")).status is Status.RUNNING
    third = crowd.worker("worker-0")
    third.store.away = True
    await third.manager.recover()
    reply = await third("process_status", process_id="p")
    assert reply["error"]["code"] == "storage_unavailable"
    worker.store.away = False
    assert (await start)["status"] == "failed"


async def test_what_is_owed_is_sent_by_one_of_the_workers_that_start_and_then_forgotten(crowd):
    dead = await owing(crowd, steps=20, seconds=1, fail_at=20)
    before = (await crowd.record("p")).revision
    successors = [crowd.worker("worker-0") for _ in range(3)]
    await asyncio.gather(*(each.manager.recover() for each in successors))
    record = await crowd.record("p")
    assert (record.status, record.revision) == (Status.FAILED, before + 1)
    assert sum(len(each.store.asked("replace", key="record")) for each in successors) == 1
    assert not dead.manager.leases.cache._place.folder.exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
async def test_odd_files_beside_a_journal_keep_nothing_from_being_sent(crowd, make):
    dead = await owing(crowd, steps=20, seconds=1, fail_at=20)
    for name in ("q.json", "q.unsent"):
        make(dead.manager.leases.cache._place.folder / name)
    await crowd.worker("worker-0").manager.recover()
    assert (await crowd.record("p")).status is Status.FAILED


async def test_a_copy_that_cannot_be_adopted_keeps_no_end_from_being_sent(crowd, monkeypatch):
    """The disk is full: no folder can be made for it."""
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    reborn = crowd.worker("worker-0")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reborn.manager.leases.cache._place, "claim", full)
    await reborn.manager.recover()
    assert (await crowd.record("p")).status is Status.FAILED


async def test_a_worker_that_dies_while_it_sends_leaves_it_to_the_next(crowd):
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    first, second = crowd.worker("worker-0"), crowd.worker("worker-0")
    first.store.away = True
    sending = asyncio.create_task(first.manager.recover())
    await until(lambda: first.store.asked("get"))
    await second.manager.recover()
    assert not second.store.asked("replace")
    sending.cancel()
    await asyncio.wait([sending])
    await crowd.worker("worker-0").manager.recover()
    assert (await crowd.record("p")).status is Status.FAILED


async def test_what_was_sent_after_all_is_owed_no_more(crowd):
    """A journal whose writes the store has taken goes, and is not sent by the next worker."""
    worker = crowd.worker()
    start = await worker.running("p", steps=20, seconds=1, fail_at=20)
    worker.store.away = True
    await failed_writes(worker, 2)
    worker.store.away = False
    assert (await start)["status"] == "failed"
    folder = worker.manager.leases.cache._place.folder
    assert [path.name for path in folder.iterdir()] == ["p.json"]


async def test_cancel_works_on_the_owner_while_the_store_is_away(crowd):
    worker = crowd.worker()
    start = await worker.running("p", step=1)
    child = worker.children()[0]
    worker.store.away = True
    reply = await worker("cancel", process_id="p", wait_seconds=0.1)
    assert (reply["status"], reply["cancel_requested"]) == ("running", True)
    await asyncio.shield(child._gone)
    worker.store.away = False
    assert (await start)["status"] == "cancelled"


# ---- at the start


async def test_a_start_waits_for_the_store(crowd):
    worker = crowd.worker(store_patience_seconds=60)
    worker.store.away = True
    start = worker.starts("p", steps=1)
    await until(lambda: worker.store.asked("create", "get"))
    worker.store.away = False
    assert (await start)["status"] == "completed"


async def test_a_start_that_waited_long_enough_fails_and_has_begun_nothing(crowd):
    worker = crowd.worker(store_patience_seconds=0.5)
    worker.store.away = True
    reply = await worker.start("p", steps=1)
    assert reply["error"]["code"] == "storage_unavailable"
    assert reply["error"]["retryable"]
    assert not worker.runs()
    worker.store.away = False
    assert (await worker("process_status", process_id="p"))["status"] == "not_found"


# ---- a worker that dies before the store is back


async def owing(crowd, **params):
    """A worker that died owing the store the end of process `p`."""
    worker = crowd.worker()
    await worker.running("p", **params)
    worker.store.away = True
    if "fail_at" not in params:
        await worker.manager.drain()
    run = worker.runs()[0]
    await until(lambda: run.lease.desired.released)
    await failed_writes(worker, 2)
    await worker.die()
    return worker


async def test_the_next_worker_on_the_disk_writes_a_failure_that_is_owed(crowd):
    """Trap 3."""
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    assert (await crowd.record("p")).status is Status.RUNNING
    reborn = crowd.worker("worker-0")
    await reborn.manager.recover()
    record = await crowd.record("p")
    assert (record.status, record.failure.code) == ("failed", "job_error")
    page = await reborn("processes", status="failed")
    assert [row["process_id"] for row in page["processes"]] == ["p"]
    assert (await reborn("process_status", process_id="p"))["status"] == "failed"


async def test_what_was_interrupted_is_owed_too(crowd):
    await owing(crowd, step=1)
    await crowd.worker("worker-0").manager.recover()
    assert (await crowd.record("p")).status is Status.INTERRUPTED


async def test_an_end_is_owed_on_top_of_a_write_whose_answer_was_lost(crowd):
    """The dead worker never knew that its last write had arrived."""
    worker = crowd.worker()
    await worker.running("p", step=1)
    pause = worker.store.pause_after("replace", "record.json")
    await pause.reached.wait()
    worker.store.away = True
    pause.go.set()
    await worker.manager.drain()
    await failed_writes(worker, 2)
    await worker.die()
    await crowd.worker("worker-0").manager.recover()
    assert (await crowd.record("p")).status is Status.INTERRUPTED


async def test_what_is_owed_waits_for_the_store(crowd):
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    reborn = crowd.worker("worker-0")
    reborn.store.away = True
    recovery = asyncio.create_task(reborn.manager.recover())
    await until(lambda: reborn.store.asked("get"))
    reborn.store.away = False
    await recovery
    assert (await crowd.record("p")).status is Status.FAILED


async def test_an_end_that_the_store_refuses_stays_in_its_journal_and_delays_no_other(
    crowd, caplog
):
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    reborn = crowd.worker("worker-0")
    reborn.store.refuse("replace", "processes/p/")
    await reborn.manager.recover()
    assert "the end of process p stays unsent" in caplog.text
    assert reborn.store.asked("list")  # what follows the journals
    await crowd.worker("worker-0").manager.recover()
    assert (await crowd.record("p")).status is Status.FAILED


async def test_what_is_owed_survives_a_question_about_the_process(crowd):
    """Asked before recovery came to it, the new worker must not forget what the old one owes."""
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    reborn = crowd.worker("worker-0")
    assert (await reborn.manager.lookup.get("p")).record.status is Status.RUNNING
    await reborn.manager.recover()
    assert (await crowd.record("p")).status is Status.FAILED


async def test_nothing_is_owed_for_a_process_that_has_moved_on(crowd):
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    heir = crowd.heir()
    await heir.running("p", steps=20, seconds=1, fail_at=20)
    await heir("process_status", process_id="p")
    await crowd.worker("worker-0").manager.recover()
    record = await crowd.record("p")
    assert record.attempt == 2
    assert record.writer.worker_id == heir.settings.worker_id


# ---- at the end


@pytest.mark.parametrize("key", ["/artifacts/", "/manifest.json", "/logs/", "record.json"])
async def test_a_store_that_is_away_at_the_end_delays_the_end(crowd, key):
    """Trap 22. `completed` waits for everything that it promises."""
    worker = crowd.worker(upload_patience_seconds=60)
    if key == "record.json":
        worker.store.fail("replace", key, nth=3)
        worker.store.fail("replace", key, nth=4)
    else:
        worker.store.fail("", key, nth=1)
    view = await worker.start("p", steps=2, artifacts=1, print_lines=1)
    assert view["status"] == "completed"
    assert len(view["files"]) == 1
    completed = [n for n, r in enumerate(worker.store.stored) if r.status is Status.COMPLETED]
    assert completed == [len(worker.store.stored) - 1]


async def test_an_upload_that_is_refused_for_too_long_is_a_failure_and_no_completion(crowd):
    """Trap 22."""
    worker = crowd.worker(upload_patience_seconds=0)
    worker.store.fail("upload", nth=None)
    view = await worker.start("p", artifacts=1)
    assert (view["status"], view["failure"]["code"]) == ("failed", "upload_failed")
    assert view["resumable"]


async def test_a_platform_cancel_during_an_outage_still_ends_the_child(crowd):
    worker = crowd.worker()
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **LONG)))
    await worker.seen("p", "running", step=1)
    child = worker.children()[0]
    worker.store.away = True
    deliver.cancel()
    await asyncio.shield(child._gone)
    worker.store.away = False
    await asyncio.wait([deliver])
    assert (await crowd.record("p")).failure.code == "stopped_by_platform"


async def test_an_end_without_its_worker_s_proof_is_never_sent(crowd):
    """A job may write to the scratch disk, and lay the end of another process there."""
    worker = crowd.worker()
    await worker.running("p", step=1)
    stored = await crowd.record("p")
    cache = worker.manager.leases.cache
    left = cache._parent / f"worker-{'0' * 16}"
    left.mkdir()
    forged = Unsent(record=stored.completed(utc_now(), "forged"), proof="0" * 64)
    (left / "p.unsent").write_text(f"\n{forged.model_dump_json()}")

    await crowd.worker("worker-0").manager.recover()

    assert (await crowd.record("p")).status is Status.RUNNING
    assert not left.exists()


async def test_a_copy_that_this_worker_did_not_write_is_no_final_answer(crowd):
    """Nor is it compared with: the store's "unchanged" would make its words the truth."""
    worker = crowd.worker()
    await worker.start("p", steps=1)
    cache = worker.manager.leases.cache
    path = cache._place.folder / "p.json"
    path.write_text(path.read_text().replace('"completed"', '"cancelled"'))
    cache._recent.clear()

    assert (await worker("process_status", process_id="p"))["status"] == "completed"


async def test_a_very_deep_folder_beside_the_journals_ends_no_recovery(crowd, removed_however_deep):
    await owing(crowd, steps=20, seconds=1, fail_at=20)
    reborn = crowd.worker("worker-0")
    deep = reborn.manager.leases.cache._parent / f"worker-{'0' * 16}"
    deep.mkdir()
    with opened(deep) as folder:
        _deepen(folder, 1500)

    await reborn.manager.recover()

    assert (await crowd.record("p")).status is Status.FAILED
    assert not deep.exists()


def _deepen(folder: int, levels: int) -> None:
    """Nest folders in each other, deeper than a path can name."""
    held = os.dup(folder)
    for _ in range(levels):
        os.mkdir("d", dir_fd=held)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
        os.close(held)
        held = below
    os.close(held)
