"""What sank an earlier system of this kind, one test for each: DESIGN section 10, 1 to 16.

Most have more to them, and more tests elsewhere; here each is named and caught.
"""

import asyncio
import threading

import pytest

from records.index import index_key
from records.keys import record_key
from records.record import Status
from stores.local.objects import LocalObjects
from stores.local.store import LocalStore
from tests.crowd import on_every_store, start_of, until
from tests.test_index import listed, record_of

LONG = {"seconds": 60, "steps": 600}


@on_every_store
async def test_trap_1_who_is_not_the_owner_does_not_repeat_running_for_ever(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    assert (await other("process_status", process_id="p"))["status"] == "running"
    await owner("cancel", process_id="p")
    assert (await other("process_status", process_id="p"))["status"] == "cancelled"


async def test_trap_2_fast_failures_do_not_stay_running(crowd):
    """Their writes come within milliseconds of each other, through a store that dawdles."""
    worker = crowd.worker(slots=4)
    worker.store.delay("replace", seconds=0.05)
    names = [f"p{number}" for number in range(8)]
    await asyncio.gather(*(worker.start(name, fail_at=1) for name in names))
    for name in names:
        record = await crowd.record(name)
        assert [entry.status for entry in record.history] == ["queued", "running", "failed"]


async def test_trap_3_no_write_is_lost_at_exit(crowd):
    """A worker that dies the moment it has answered has left nothing undone."""
    worker = crowd.worker()
    await worker.start("p")
    await worker.die()
    record = await crowd.record("p")
    assert [entry.status for entry in record.history] == ["queued", "running", "completed"]


async def test_trap_4_a_write_that_failed_is_written_again(crowd):
    worker = crowd.worker()
    for nth in (1, 2, 3):
        worker.store.fail("replace", "record.json", nth=nth)
    assert (await worker.start("p"))["status"] == "completed"
    assert (await crowd.record("p")).status is Status.COMPLETED


async def test_trap_5_a_missing_key_is_no_fault_of_the_store(crowd):
    """However many ask for what is not there, what is there is found."""
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    for number in range(100):
        await other("process_status", process_id=f"nobody-{number}")
    assert (await other("process_status", process_id="p"))["status"] == "running"


async def test_trap_6_a_process_whose_owner_was_killed_is_not_running_for_ever(crowd):
    owner, heir = crowd.worker(), crowd.heir()
    await owner.running("p")
    await owner.die()
    assert (await heir("process_status", process_id="p"))["status"] == "interrupted"


async def test_trap_7_the_live_record_is_not_handed_out(crowd):
    worker = crowd.worker()
    await worker.running("p", step=1)
    view = await worker("process_status", process_id="p")
    view["status"], view["attempt"] = "completed", 99
    view["history"].clear()
    view["progress"].clear()
    again = await worker("process_status", process_id="p")
    assert (again["status"], again["attempt"]) == ("running", 1)
    assert again["history"]
    assert again["progress"]


async def test_trap_8_the_status_of_a_failed_process_is_no_failed_request(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p", fail_at=1)
    for worker in (owner, other):
        reply = await worker("process_status", process_id="p")
        assert reply["status"] == "failed"
        assert "error" not in reply


async def test_trap_9_the_newest_of_more_than_a_thousand_processes_is_listed_first(crowd):
    for number in range(1001):
        row = index_key(record_of(f"p{number}", minute=number), Status.COMPLETED)
        await crowd.store.put(row, b"")
    page = await crowd.worker()("processes", limit=1)
    assert page["processes"][0]["process_id"] == "p1000"


async def test_trap_10_a_list_is_one_request_however_long_it_is(crowd):
    for number in range(200):
        row = index_key(record_of(f"p{number}", minute=number), Status.COMPLETED)
        await crowd.store.put(row, b"")
    rows, requests = await listed(crowd.store)
    assert (len(rows), requests) == (200, 1)


@on_every_store
async def test_trap_11_no_request_to_the_store_runs_on_the_event_loop(crowd, monkeypatch):
    from urllib3.connection import HTTPConnection

    threads = []

    def spy_on(where, name):
        real = getattr(where, name)

        def spied_on(self, *args, **options):
            threads.append(threading.current_thread())
            return real(self, *args, **options)

        monkeypatch.setattr(where, name, spied_on)

    if isinstance(crowd.store, LocalStore):
        spy_on(LocalObjects, "_opened")
    else:
        spy_on(HTTPConnection, "request")  # boto3's, and that of signed calls
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    await worker("processes")
    await worker("download", process_id="p")
    assert threads
    assert threading.main_thread() not in threads


async def test_trap_12_a_store_that_is_down_does_not_look_like_no_data(crowd):
    worker = crowd.worker()
    worker.store.away = True
    for action, fields in (("process_status", {"process_id": "p"}), ("processes", {})):
        assert (await worker(action, **fields))["error"]["code"] == "storage_unavailable"


async def test_trap_13_a_cancelled_job_does_not_finish_and_overwrite_the_cancel(crowd):
    """It ignores all it is asked and would complete, were it not killed."""
    owner, other = crowd.worker(cancel_grace_seconds=0.4), crowd.worker()
    start = await owner.running("p", steps=1, seconds=3, ignore_sigterm=True)
    await other("cancel", process_id="p")
    assert (await start)["status"] == "cancelled"
    record = await crowd.record("p")
    assert [entry.status for entry in record.history][-1] == "cancelled"
    assert Status.COMPLETED not in [entry.status for entry in record.history]


async def test_trap_14_cancel_of_a_completed_process_changes_nothing(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p", artifacts=1)
    before = await crowd.store.get(record_key("p"))
    for worker in (owner, other):
        reply = await worker("cancel", process_id="p")
        assert (reply["status"], reply["cancel_requested"]) == ("completed", False)
    assert (await crowd.store.get(record_key("p"))).data == before.data
    assert len((await other("download", process_id="p"))["files"]) == 1


async def test_trap_15_a_cancel_by_the_platform_leaves_no_child(crowd):
    """Nor what the child has started."""
    worker = crowd.worker()
    params = LONG | {"spawn_grandchild": True}
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **params)))
    await worker.seen("p", "running", step=1)
    child = worker.children()[0]
    deliver.cancel()
    await asyncio.wait([deliver])
    assert child._gone.done()
    assert (await crowd.record("p")).status is Status.CANCELLED


async def test_trap_16_a_failed_run_is_not_run_again_unless_asked(crowd):
    """Neither by whoever waited for it, nor by whoever looks at it, nor by the next worker."""
    one, two = crowd.worker(), crowd.worker()
    params = {"steps": 5, "seconds": 1, "fail_at": 5}
    await one.running("p", **params)
    follower = two.starts("p", **params)
    joiner = one.starts("p", **params)
    for start in (follower, joiner):
        assert ((await start)["status"], (await start)["attempt"]) == ("failed", 1)
    await crowd.worker().manager.recover()
    await two("process_status", process_id="p")
    await two("processes")
    assert (await crowd.record("p")).attempt == 1


# ---- and what all of them come down to


@on_every_store
async def test_every_status_is_stored_before_it_is_told(crowd):
    """Whoever polls the owner without a pause hears nothing that the store did not have before."""
    worker = crowd.worker()
    worker.store.delay("replace", seconds=0.05)
    start = worker.starts("p", steps=3)
    await until(lambda: worker.store.stored)
    heard = set()
    while not start.done():
        view = await worker("process_status", process_id="p")
        told = (view["status"], view["revision"])
        assert told in {(record.status, record.revision) for record in worker.store.stored}
        heard.add(view["status"])
        await asyncio.sleep(0)
    assert worker.store.stored[-1].status == (await start)["status"] == "completed"
    assert {"queued", "running"} <= heard


@pytest.mark.parametrize(
    ("end", "params"), [("completed", {}), ("failed", {"fail_at": 1})], ids=["done", "failed"]
)
async def test_a_start_is_not_answered_before_its_end_is_stored(crowd, end, params):
    worker = crowd.worker(heartbeat_seconds=60, lease_seconds=600)
    start = worker.starts("p", **params)
    await until(lambda: worker.manager.runs.get("p"))
    lease = worker.manager.runs.get("p").lease
    await until(lambda: lease.record.status is Status.RUNNING)
    pause = worker.store.pause_before("replace", "record.json", nth=None)
    await pause.reached.wait()
    await until(lambda: lease.desired.released)
    assert (await worker("process_status", process_id="p"))["status"] == "running"
    assert not start.done()
    pause.go.set()
    assert (await start)["status"] == end
