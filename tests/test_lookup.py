"""How a process is found, from RAM, the store or a copy, and what each of them costs."""

import asyncio
import copy

import pytest

from records.keys import record_key
from records.reading import RecordUnreadable, UnknownProcess
from records.record import Status
from tests.crowd import on_every_store, until
from tests.test_cancel import start_of


def requests(worker):
    """What was asked of the store, heartbeats aside."""
    return [call.name for call in worker.store.calls]


async def test_its_own_process_costs_a_worker_no_request(crowd):
    worker = crowd.worker(heartbeat_seconds=60, lease_seconds=600, cancel_poll_seconds=60)
    await worker.running("p")
    worker.store.forget_calls()
    for _ in range(20):
        view = await worker("process_status", process_id="p")
        assert (view["source"], view["stale"]) == ("memory", False)
    assert not worker.store.asked("get")


@on_every_store
async def test_a_live_process_of_another_worker_is_read_each_time(crowd):
    """Trap 1."""
    owner, other = crowd.worker(), crowd.worker()
    start = owner.starts("p", steps=40, seconds=2)
    await owner.seen("p", "running")
    seen = []
    while (view := await other("process_status", process_id="p"))["status"] != "completed":
        seen.append(view)
        assert view["source"] == "storage"
    await start
    assert [view["revision"] for view in seen] == sorted(view["revision"] for view in seen)
    assert len(other.store.asked("get", key="record")) == len(seen) + 1


@on_every_store
async def test_a_completed_process_costs_a_request_once(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p")
    first = await other("process_status", process_id="p")
    assert requests(other) == ["get"]
    second = await other("process_status", process_id="p")
    assert requests(other) == ["get"]
    assert (first["source"], second["source"]) == ("storage", "cache")
    assert not second["stale"]
    assert second["result"] == first["result"]


async def test_a_dead_worker_s_copy_is_believed_only_while_the_store_is_away(crowd):
    """A job could have written it."""
    first = crowd.worker("disk")
    await first.start("p")
    await first.die()
    reborn = crowd.worker("disk")
    reborn.store.away = True
    recovery = asyncio.create_task(reborn.manager.recover())
    await until(lambda: reborn.store.asked("list"))
    view = await reborn("process_status", process_id="p")
    assert (view["status"], view["stale"]) == ("completed", True)
    reborn.store.away = False
    await recovery
    assert (await reborn("process_status", process_id="p"))["source"] in ("storage", "cache")
    assert "get" in requests(reborn)


@on_every_store
async def test_a_copy_of_unknown_age_is_read_anew_and_not_trusted(crowd):
    """An owner's copy has no time: it was written, not read."""
    owner, other = crowd.worker("disk"), crowd.worker()
    await owner.running("p", step=1)
    await owner.die()
    reborn = crowd.worker("disk")
    await reborn.manager.recover()
    copy = await reborn.manager.leases.cache.find("p")
    await reborn.manager.leases.cache.keep(
        copy.model_copy(update={"modified": None, "age_seconds": None})
    )
    reborn.store.away = True
    stale = await reborn("process_status", process_id="p")
    assert (stale["stale"], stale["heartbeat_age_seconds"]) == (True, None)
    assert stale["why"]["code"] == "heartbeat_unknown"
    reborn.store.away = False
    ages = [
        (await worker("process_status", process_id="p"))["heartbeat_age_seconds"]
        for worker in (other, reborn, other)
    ]
    assert 0 <= ages[0] <= ages[1] <= ages[2]


@pytest.mark.parametrize("change", ["fail_at", "platform"])
async def test_an_end_that_may_be_left_is_read_each_time(crowd, change):
    """A failed process may have been started again elsewhere."""
    owner, other = crowd.worker(), crowd.worker()
    if change == "fail_at":
        await owner.start("p", fail_at=1)
    else:
        deliver = asyncio.create_task(owner.manager.deliver(start_of("p", seconds=60)))
        await owner.seen("p", "running")
        deliver.cancel()
        await asyncio.wait([deliver])
    for count in (1, 2):
        assert (await other("process_status", process_id="p"))["source"] == "storage"
        assert len(requests(other)) == count


@on_every_store
async def test_what_has_not_changed_is_not_sent_again(crowd):
    """The second read carries the version it knows (HTTP 304 on a bucket); the age is made new."""
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    await owner.die()
    one = await other.manager.lookup.get("p")
    two = await other.manager.lookup.get("p")
    while two.age_seconds < one.age_seconds + 0.5:  # a bucket's clock may know whole seconds only
        two = await other.manager.lookup.get("p")
    assert two.record is one.record


async def test_what_nobody_started_is_unknown_and_only_the_store_can_say_so(crowd):
    """Trap 5."""
    worker = crowd.worker()
    with pytest.raises(UnknownProcess):
        await worker.manager.lookup.get("nobody")
    for _ in range(50):  # a missing key is no fault of the store
        await worker("process_status", process_id="nobody")
    assert (await worker.start("p"))["status"] == "completed"


async def test_a_process_that_was_removed_is_forgotten(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    await other("process_status", process_id="p")
    await owner.die()
    await crowd.store.delete([record_key("p")])
    assert (await other("process_status", process_id="p"))["status"] == "not_found"
    other.store.away = True
    reply = await other("process_status", process_id="p")
    assert reply["error"]["code"] == "storage_unavailable"


async def test_what_is_no_record_is_said_to_be_none(crowd):
    await crowd.store.put(record_key("p"), b"{}")
    with pytest.raises(RecordUnreadable):
        await crowd.worker().manager.lookup.get("p")


async def test_a_caller_cannot_change_the_live_record(crowd):
    """Trap 7."""
    worker = crowd.worker()
    await worker.running("p", step=1)
    view = await worker("process_status", process_id="p")
    before = copy.deepcopy(view["labels"]), view["status"]
    view["labels"]["x"] = "y"
    view["status"] = "completed"
    view["progress"]["metrics"]["loss"] = 0
    view["history"].clear()
    again = await worker("process_status", process_id="p")
    assert (again["labels"], again["status"]) == before
    assert again["history"]
    record = (await worker.manager.lookup.get("p")).record
    with pytest.raises(ValueError, match="frozen"):
        record.status = Status.COMPLETED


async def test_a_long_poll_on_another_worker_hears_of_the_end(crowd):
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    known = (await other("process_status", process_id="p"))["revision"]
    poll = asyncio.create_task(
        other("process_status", process_id="p", since_revision=known + 10_000, wait_seconds=60)
    )
    await owner("cancel", process_id="p")
    assert (await poll)["status"] == "cancelled"


async def test_many_polls_at_once_leave_a_copy_that_can_be_read(crowd):
    """They all write the same local file."""
    owner, other = crowd.worker(), crowd.worker("disk")
    await owner.running("p", step=1)
    for _ in range(20):
        await asyncio.gather(*(other("process_status", process_id="p") for _ in range(8)))
    await other.die()
    reborn = crowd.worker("disk")
    reborn.store.away = True
    await reborn.manager.recover()
    assert (await reborn("process_status", process_id="p"))["stale"]
