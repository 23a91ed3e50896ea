"""The one writer of a record: what it writes, when, in which order, and when it stops."""

import asyncio
from collections import Counter

import pytest

from process_manager import new_leases
from records.keys import record_key
from records.lease import LeaseLost, LeaseWatch
from records.record import ProgressSeen, Record, Status, Writer, new_record
from tests.crowd import until
from tests.faulty_store import FaultyStore
from tests.kit import settings
from utils import utc_now

pytestmark = pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)

SLOW = {"heartbeat_seconds": 60, "lease_seconds": 600, "progress_write_seconds": 60}


@pytest.fixture
async def lease_of(store, tmp_path):
    """Makes a lease on a new process and keeps it; `lease.store` is its line to the store."""
    keeping = []

    async def make(**changes):
        faulty = FaultyStore(store)
        mine = settings(tmp_path, **changes)
        record = new_record(
            process_id="p",
            kind="sleep",
            params={},
            request_hash="h",
            writer=Writer(worker_id="me", nonce="1"),
            now=utc_now(),
        )
        lease = await new_leases(faulty, mine).create(record)
        lease.store = faulty
        lease.kept = asyncio.create_task(lease.keep())
        keeping.append(lease.kept)
        return lease

    yield make
    for task in keeping:
        task.cancel()
    await asyncio.gather(*keeping, return_exceptions=True)


def statuses(records):
    return [record.status.value for record in records]


def at_step(step):
    return lambda record: record.with_progress(ProgressSeen(step=step))


def running(record):
    return record.running(utc_now())


def completed(record):
    return record.completed(utc_now(), None)


async def steal(store):
    """Another worker claims the process."""
    stored = await store.get(record_key("p"))
    theirs = Record.model_validate_json(stored.data).claimed(
        Writer(worker_id="thief", nonce="2"), utc_now(), reason="stolen"
    )
    await store.replace(record_key("p"), theirs.written(utc_now()).encode(), stored.version)


async def test_a_change_has_happened_when_the_store_holds_it(lease_of, store):
    lease = await lease_of(**SLOW)
    assert (await lease.change(running)).status is Status.RUNNING
    stored = Record.model_validate_json((await store.get(record_key("p"))).data)
    assert stored.status is Status.RUNNING


async def test_a_change_is_not_told_before_it_is_stored(lease_of):
    lease = await lease_of(**SLOW)
    pause = lease.store.pause_before("replace")
    lease.submit(running)
    await pause.reached.wait()
    assert lease.record.status is Status.QUEUED
    assert lease.desired.status is Status.RUNNING
    pause.go.set()
    await lease.revision_above(1)
    assert lease.record.status is Status.RUNNING


async def test_there_is_never_more_than_one_write_on_its_way(lease_of):
    """Trap 2: writes that overtake each other."""
    lease = await lease_of(**SLOW)
    pause = lease.store.pause_before("replace")
    changes = [asyncio.create_task(lease.change(running))]
    await pause.reached.wait()
    changes += [asyncio.create_task(lease.change(at_step(n))) for n in range(50)]
    await asyncio.sleep(0)
    assert len(lease.store.asked("replace")) == 1
    pause.go.set()
    await asyncio.gather(*changes)
    assert len(lease.store.asked("replace")) == 2, "what waited went as one"


async def test_history_is_in_order_however_many_changes_one_write_carries(lease_of):
    lease = await lease_of(**SLOW)
    pause = lease.store.pause_before("replace")
    lease.submit(lambda record: record.with_timing("queued", 0))
    await pause.reached.wait()
    lease.submit(running)
    lease.submit(completed)
    pause.go.set()
    await lease.kept
    assert [entry.status for entry in lease.record.history] == ["queued", "running", "completed"]
    assert [record.revision for record in lease.store.stored] == [1, 2, 3]


async def test_the_end_is_the_last_thing_written(lease_of):
    """What comes after it comes too late, and waits for nothing."""
    lease = await lease_of(**SLOW)
    lease.submit(running)
    await lease.change(completed)
    lease.report(at_step(9))
    assert (await lease.change(at_step(9))).progress is None
    await lease.kept
    assert statuses(lease.store.stored)[-1] == "completed"
    assert Counter(statuses(lease.store.stored))["completed"] == 1


async def test_progress_is_seen_at_once_and_stored_when_it_is_due(lease_of):
    lease = await lease_of(**(SLOW | {"progress_write_seconds": 0.3}))
    began = asyncio.get_running_loop().time()
    step = 0
    while len(lease.store.stored) < 4:
        step += 1
        lease.report(at_step(step))
        assert lease.record.progress.step == step
        await asyncio.sleep(0.001)
    seconds = asyncio.get_running_loop().time() - began
    assert seconds >= 3 * 0.3 - 0.05
    assert step > 4


async def test_progress_whose_write_failed_is_written_before_a_heartbeat(lease_of):
    """Though the job says no more: it is shown where it stands."""
    lease = await lease_of(**(SLOW | {"progress_write_seconds": 0.1}))
    lease.store.fail("replace")
    lease.report(at_step(1))
    async with asyncio.timeout(SLOW["heartbeat_seconds"] / 2):
        await until(lambda: lease.store.stored[-1].progress == ProgressSeen(step=1))
    assert len(lease.store.asked("replace")) == 2


async def test_progress_that_came_while_an_answer_was_lost_waits_for_no_heartbeat(lease_of):
    lease = await lease_of(**(SLOW | {"progress_write_seconds": 0.1}))
    answer = lease.store.pause_after("replace")
    lease.store.lose_answer("replace")
    lease.report(at_step(1))
    await answer.reached.wait()
    lease.report(at_step(2))
    answer.go.set()
    async with asyncio.timeout(SLOW["heartbeat_seconds"] / 2):
        await until(lambda: lease.store.stored[-1].progress == ProgressSeen(step=2))
    assert not lease.lost.is_set()


async def test_a_heartbeat_goes_out_when_nothing_changes(lease_of):
    lease = await lease_of()
    await lease.revision_above(3)
    assert set(statuses(lease.store.stored)) == {"queued"}


async def test_a_write_whose_answer_is_lost_is_our_own(lease_of):
    lease = await lease_of(**SLOW)
    lease.store.lose_answer("replace")
    record = await lease.change(running)
    assert not lease.lost.is_set()
    assert [entry.status for entry in record.history] == ["queued", "running"]
    await lease.change(completed)
    await lease.kept
    assert [entry.status for entry in lease.record.history] == ["queued", "running", "completed"]


async def test_an_end_whose_answer_is_lost_is_written_once(lease_of):
    lease = await lease_of(**SLOW)
    lease.store.lose_answer("replace")
    await lease.change(completed)
    await lease.kept
    assert statuses(lease.store.stored) == ["queued", "completed"]


async def test_a_foreign_writer_ends_the_lease(lease_of, store):
    """A change that waits hears of it, and nothing more is written."""
    lease = await lease_of(**SLOW)
    await steal(store)
    with pytest.raises(LeaseLost):
        await lease.change(running)
    await lease.kept
    assert lease.lost.is_set()
    lease.store.forget_calls()
    with pytest.raises(LeaseLost):
        await lease.change(running)
    assert not lease.store.calls


async def test_who_waits_for_news_of_a_lost_lease_waits_no_longer(lease_of, store):
    lease = await lease_of()
    waiting = asyncio.create_task(lease.revision_above(1000))
    await steal(store)
    await waiting
    assert lease.ended


async def test_a_record_that_was_removed_is_a_lease_lost(lease_of, store):
    lease = await lease_of(**SLOW)
    await store.delete([record_key("p")])
    with pytest.raises(LeaseLost):
        await lease.change(running)


async def test_an_outage_may_last_as_long_as_it_likes(lease_of, monkeypatch):
    """Over a thousand failed writes, half an hour or so, and the next one goes through."""
    lease = await lease_of(**SLOW)
    lease.store.away = True
    monkeypatch.setattr("records.lease.random.uniform", lambda _low, _high: 0)
    change = asyncio.create_task(lease.change(running))
    await until(lambda: len(lease.store.asked("replace")) >= 1100)
    assert not lease.kept.done()
    lease.store.away = False
    assert (await change).status is Status.RUNNING


async def test_words_that_are_no_text_cost_no_lease(lease_of, store):
    """A file name that is no UTF-8, in a message: half a character cannot be written as it is."""
    lease = await lease_of(**SLOW)
    odd = "caf\udce9"
    await lease.change(lambda r: r.with_progress(ProgressSeen(step=1, message=odd)))
    stored = Record.model_validate_json((await store.get(record_key("p"))).data)
    assert stored.progress.message == "caf?"


# ---- from outside


def test_an_owner_is_gone_when_it_was_silent_for_a_lease_and_for_the_watch(
    place, tmp_path, monkeypatch
):
    now = 0.0
    monkeypatch.setattr("records.lease.time.monotonic", lambda: now)
    watch = LeaseWatch(settings(tmp_path, lease_seconds=30, takeover_watch_seconds=10))
    assert not watch.saw("v1", 31)
    now = 9
    assert not watch.saw("v1", 40)
    now = 10
    assert watch.saw("v1", 41)
    assert not watch.saw("v2", 41), "it has written since"


def test_a_watch_that_the_store_interrupted_begins_again(place, tmp_path, monkeypatch):
    """After an outage every record looks old."""
    now = 0.0
    monkeypatch.setattr("records.lease.time.monotonic", lambda: now)
    watch = LeaseWatch(settings(tmp_path, lease_seconds=30, takeover_watch_seconds=10))
    assert not watch.saw("v1", 100)
    now = 9
    watch.saw_nothing()
    now = 60
    assert not watch.saw("v1", 160)
    now = 70
    assert watch.saw("v1", 170)


def test_of_unknown_age_an_owner_is_gone_when_it_was_watched_for_a_lease(
    place, tmp_path, monkeypatch
):
    now = 0.0
    monkeypatch.setattr("records.lease.time.monotonic", lambda: now)
    watch = LeaseWatch(settings(tmp_path, lease_seconds=30, takeover_watch_seconds=10))
    assert not watch.saw("v1", None)
    now = 29
    assert not watch.saw("v1", None)
    assert not watch.saw("v2", None), "it has written since"
    now = 59
    assert not watch.saw("v2", None)
    now = 60
    assert watch.saw("v2", None)
