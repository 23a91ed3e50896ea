"""Workers whose clocks disagree by an hour: nobody is thought dead, and durations make sense."""

import asyncio
from datetime import timedelta

import pytest

from process_manager import ProcessManager
from records.keys import record_key
from records.record import Status
from records.view import view
from tests.crowd import on_every_store, start_of, until
from tests.faulty_store import FaultyStore
from tests.kit import settings
from utils import utc_now

HOUR = timedelta(hours=1)


@pytest.fixture
async def worker_at(crowd, tmp_path):
    """Makes workers whose clocks are wrong by so much."""
    made = []

    def make(wrong_by, **changes):
        store = FaultyStore(crowd.store)
        name = f"clock-{len(made)}"
        manager = ProcessManager(
            store,
            settings(tmp_path / name, worker_id=name, **changes),
            clock=lambda: utc_now() + wrong_by,
        )
        manager.store = store
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.store.away = True
        manager.store.thaw()
        for run in manager.runs:
            run.task.cancel()
            await asyncio.wait([run.task])


@on_every_store
@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR], ids=["fast", "slow"])
async def test_a_worker_with_a_wrong_clock_is_not_thought_dead(crowd, worker_at, wrong_by):
    owner, other = worker_at(wrong_by), worker_at(-wrong_by)
    params = {"steps": 20, "seconds": 2}
    start = asyncio.create_task(owner.deliver(start_of("p", **params)))
    await until(lambda: owner.runs.get("p"))
    follower = asyncio.create_task(other.deliver(start_of("p", **params)))
    while not start.done():
        seen = await other.lookup.get("p")
        assert view(seen, lease_seconds=3)["status"] != "interrupted"
        await asyncio.sleep(0.05)
    assert (await start).record.attempt == (await follower).record.attempt == 1


@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR], ids=["fast", "slow"])
async def test_times_never_run_backwards_when_a_process_moves(crowd, worker_at, wrong_by):
    """Each attempt ran for about as long as its times say, and the second came after the first."""
    first, second = worker_at(wrong_by), worker_at(-wrong_by)
    params = {"steps": 100, "seconds": 3}
    start = asyncio.create_task(first.deliver(start_of("p", **params)))
    await crowd.record_when("p", lambda record: record.progress is not None)
    await first.drain()
    await start
    record = (await second.deliver(start_of("p", **params))).record
    times = [entry.at for entry in record.history]
    assert times == sorted(times)
    assert record.created_at <= record.started_at <= record.finished_at <= record.updated_at
    for seconds in (
        (record.finished_at - record.started_at).total_seconds(),
        (record.finished_at - record.created_at).total_seconds(),
    ):
        assert 0 <= seconds < 120
    assert all(0 <= s < 120 for phases in record.timings.values() for s in phases.values())


async def test_whoever_settles_a_process_does_it_by_the_processs_own_clock(crowd, worker_at):
    first, second = worker_at(HOUR), worker_at(-HOUR, takeover_watch_seconds=0)
    asyncio.create_task(first.deliver(start_of("p", seconds=60)))  # noqa: RUF006
    await crowd.record_when("p", lambda record: record.status is Status.RUNNING)
    first.store.freeze()
    second.store.later_seconds = 1000
    record = (await second.cancel("p", wait_seconds=10)).record
    seconds = (record.finished_at - record.started_at).total_seconds()
    assert 1000 <= seconds < 1120  # so long, it seems to the second, the first was silent


async def test_the_index_names_a_process_by_one_time_whoever_writes_it(crowd, worker_at):
    """Else a process that moved would be listed twice."""
    params = {"steps": 3, "fail_at": 3}
    for wrong_by in (HOUR, -HOUR):
        await worker_at(wrong_by).deliver(start_of("p", **params))
    assert len((await crowd.store.list("index/")).objects) == 1
    assert await crowd.store.get(record_key("p"))
