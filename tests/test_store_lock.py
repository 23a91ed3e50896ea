"""One cleaner at a time: a lock in the store that outlives nobody for long."""

import asyncio

import pytest

from storage import StorageUnavailable
from tests.aged import cleaned, cleaner, ended, seed
from tests.faulty_store import FaultyStore
from tests.kit import settings
from tests.servers import on_both_stores, on_local
from upkeep.retention import LockHeld
from upkeep.store_lock import LockLost, StoreLock


def lock_of(store, tmp_path, **changes):
    return StoreLock(store, settings(tmp_path, **changes), "x")


@on_both_stores
async def test_of_many_that_come_at_once_one_gets_it(store, tmp_path):
    for _ in range(5):
        locks = [lock_of(store, tmp_path, heartbeat_seconds=0.01) for _ in range(6)]

        async def take(lock):
            took = await lock.take()
            if took:
                await asyncio.sleep(0.1)
                await lock.still_mine()  # a heartbeat: those who watch see that it lives
            return took

        taken = await asyncio.gather(*(asyncio.create_task(take(lock)) for lock in locks))
        assert sum(taken) == 1
        await locks[taken.index(True)].release()


@on_local
async def test_who_lets_go_leaves_word_to_the_next(store, tmp_path):
    first, second = lock_of(store, tmp_path), lock_of(store, tmp_path)
    assert await first.take()
    first.cursors["processes"] = "p7"
    await first.release()
    assert await second.take()
    assert second.cursors == {"processes": "p7"}


@on_local
async def test_a_holder_that_is_gone_is_succeeded_after_it_was_watched(store, tmp_path):
    assert await lock_of(store, tmp_path).take()
    faulty = FaultyStore(store)
    faulty.later_seconds = 1000
    heir = lock_of(faulty, tmp_path, takeover_watch_seconds=0.1)
    assert await heir.take()
    assert len(faulty.asked("get")) > 1


@on_local
async def test_of_unknown_age_a_lock_is_taken_when_it_was_watched_for_a_lease(store, tmp_path):
    assert await lock_of(store, tmp_path).take()
    faulty = FaultyStore(store)
    faulty.timeless = True
    second = lock_of(
        faulty, tmp_path, heartbeat_seconds=0.1, lease_seconds=0.5, takeover_watch_seconds=0.1
    )
    assert await second.take()
    assert len(faulty.asked("get")) > 1


@on_local
async def test_a_holder_that_writes_while_it_is_watched_keeps_it(store, tmp_path):
    """However old its lock looks: after an outage, every one does."""
    holder = lock_of(store, tmp_path, heartbeat_seconds=0.01)
    assert await holder.take()
    faulty = FaultyStore(store)
    faulty.later_seconds = 1000
    pause = faulty.pause_before("get", nth=2)
    heir = asyncio.create_task(lock_of(faulty, tmp_path, takeover_watch_seconds=0.1).take())
    await pause.reached.wait()
    await holder.still_mine()
    pause.go.set()
    assert not await heir


@on_local
async def test_who_lost_it_hears_of_it_before_the_next_step(store, tmp_path):
    holder = lock_of(store, tmp_path, heartbeat_seconds=1e-6)
    assert await holder.take()
    await store.put("locks/x", b'{"holder": "another", "beat": 9}')
    with pytest.raises(LockLost):
        await holder.still_mine()
    await holder.release()  # not its own any more
    assert b"another" in (await store.get("locks/x")).data


@on_local
async def test_a_heartbeat_whose_answer_was_lost_is_its_own(store, tmp_path):
    faulty = FaultyStore(store)
    holder = lock_of(faulty, tmp_path, heartbeat_seconds=1e-6)
    assert await holder.take()
    faulty.lose_answer("replace")
    with pytest.raises(StorageUnavailable):
        await holder.still_mine()
    await holder.still_mine()
    assert b'"beat":4' in (await store.get("locks/x")).data


@on_local
async def test_what_is_no_lock_is_nobodys(store, tmp_path):
    await store.put("locks/x", b"what is this")
    assert await lock_of(store, tmp_path).take()


# ---- cleaners


@on_both_stores
async def test_of_two_cleaners_one_works(store, tmp_path):
    for number in range(40):
        await seed(store, ended(f"p{number}", 60))
    one, other = (cleaner(store, tmp_path, heartbeat_seconds=0.01) for _ in range(2))
    found = await asyncio.gather(cleaned(one), cleaned(other), return_exceptions=True)
    (worked,) = [each for each in found if isinstance(each, dict)]
    assert worked == {"processes": 40}
    assert any(isinstance(each, LockHeld) for each in found)


@on_both_stores
async def test_a_frozen_cleaner_that_wakes_does_no_harm(store, tmp_path):
    """It was frozen on the verge of removing files; its lock was taken, its work done, and the id
    of a process that it was about used again by a new one."""
    await seed(store, ended("p", 60))
    frozen = cleaner(store, tmp_path, heartbeat_seconds=0.01)
    pause = frozen.store.pause_after("list", "processes/p/attempts/")
    sleeping = asyncio.create_task(cleaned(frozen))
    await pause.reached.wait()
    assert (await cleaned(cleaner(store, tmp_path))).get("erased records") in (None, 1)
    await store.delete([row.key for row in (await store.list("processes/")).objects])
    await seed(store, ended("p", 1))
    before = [(row.key, row.modified) for row in (await store.list("")).objects]
    pause.go.set()
    with pytest.raises(LockLost):
        await sleeping
    assert [(row.key, row.modified) for row in (await store.list("")).objects] == before
