"""A cleaner: cut short, dry, in the background; whatever it leaves, the next one finds."""

import asyncio
import signal

import pytest

from records.index import DELETED, age_key, index_key
from records.keys import cancel_key, record_key
from records.record import Record, Writer
from retention.clean_run import CleanReport
from retention.cleaner import Cleaner, clean, clean_if_due
from storage import StorageUnavailable
from tests.aged import (
    LATER_DAYS,
    bring,
    cleaned,
    cleaner,
    contents,
    days_ago,
    ended,
    seed,
)
from tests.mortal_cleaner import run_to_its_death
from tests.patience import PATIENCE
from tests.servers import keys_of, on_both_stores, on_local
from utils import new_nonce

# ---- a run that is cut short


async def full_store(store):
    for name, kind in (("a", "sleep"), ("b", "sleep"), ("zip", "archive")):
        await seed(store, ended(name, 60, kind=kind), files=2)
    await bring(store, "f")
    await store.put(index_key(ended("gone", 70)), b"")
    await seed(store, ended("young", 1))


async def nothing_old_is_left(store, tmp_path):
    """After one more run, and another two days later."""
    await cleaned(cleaner(store, tmp_path, later=LATER_DAYS + 1))
    await cleaned(cleaner(store, tmp_path, later=LATER_DAYS + 4))
    left = {key.partition("~")[2] or key for key in await keys_of(store)}
    assert left == {
        "locks/retention",
        record_key("young"),
        "processes/young/attempts/1/artifacts/0",
        "young~sleep~completed",
    }


@on_local
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_wherever_a_run_is_cut_short_the_next_one_goes_on(store, tmp_path, moment):
    """At each of its writes; it gives back no lock."""
    for nth in range(1, 100):
        await full_store(store)
        worker = cleaner(store, tmp_path)
        reached = cut_at_write(worker.store, nth, moment)
        cleaning = asyncio.create_task(cleaned(worker))
        await asyncio.wait(
            [cleaning, reach := asyncio.create_task(reached.wait())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        over = cleaning.done()
        worker.store.away = True
        cleaning.cancel()
        reach.cancel()
        await asyncio.gather(cleaning, reach, return_exceptions=True)
        await nothing_old_is_left(store, tmp_path)
        await store.delete(await keys_of(store))
        if over:
            assert nth > 10
            return
    pytest.fail("it never comes to its end")


def cut_at_write(store, nth, moment):
    """An event that is set when the store's `nth` write comes, which is never let on."""
    reached, seen = asyncio.Event(), 0
    for name in ("put", "create", "replace", "delete"):
        behind = getattr(store, name)

        async def write(*arguments, behind=behind, **options):
            nonlocal seen
            seen += 1
            mine = seen
            if mine >= nth and moment == "before" and not store.away:
                reached.set()
                await asyncio.Event().wait()
            result = await behind(*arguments, **options)
            if mine >= nth:
                reached.set()
                await asyncio.Event().wait()
            return result

        setattr(store, name, write)
    return reached


@on_both_stores
@pytest.mark.parametrize("write", [2, 5, 8, 11])
async def test_a_killed_cleaner_is_succeeded_by_the_next(store, place, tmp_path, write):
    """By SIGKILL, in a process of its own."""
    await full_store(store)
    code = await run_to_its_death(place, tmp_path / "dead", write)
    assert code == -signal.SIGKILL
    await nothing_old_is_left(store, tmp_path)


@on_local
async def test_a_store_that_goes_away_ends_the_run_and_is_no_fault(store, tmp_path, caplog):
    await full_store(store)
    worker = cleaner(store, tmp_path)
    worker.store.fail("delete", "processes/", nth=1)
    with pytest.raises(StorageUnavailable):
        await cleaned(worker)
    await nothing_old_is_left(store, tmp_path)
    worker.store.away = True
    with pytest.raises(StorageUnavailable):
        await clean_if_due(worker, CleanReport())


@on_both_stores
async def test_where_the_store_does_not_tell_the_time_nothing_expires(store, tmp_path):
    await full_store(store)
    before = await contents(store)
    worker = cleaner(store, tmp_path)
    worker.store.timeless = True
    with pytest.raises(StorageUnavailable, match="does not tell the time"):
        await cleaned(worker)
    assert await contents(store) == before
    await clean_if_due(worker, CleanReport())  # not even tried while its age is unknown
    assert await contents(store) == before
    worker.store.timeless = False
    await nothing_old_is_left(store, tmp_path)


# ---- a dry run


@on_both_stores
async def test_a_dry_run_tells_what_would_go_and_changes_nothing(store, tmp_path):
    await full_store(store)
    await store.put(cancel_key("never"), b"{}")
    erased = ended("erased", 60).erased(Writer(worker_id="w", nonce=new_nonce()))
    await store.put(record_key("erased"), erased.encode())
    await store.put(age_key(DELETED, "erased", days_ago(5)), b"")
    before = await contents(store)
    report = CleanReport(dry_run=True)
    worker = cleaner(store, tmp_path)
    await clean(worker, report)
    assert await contents(store) == before
    assert {call.name for call in worker.store.calls} <= {"get", "list", "list_folders", "stat"}
    assert report.counts()["erased records"] == 1
    real = CleanReport()
    await clean(worker, real)
    told = {what: sorted(tally.names) for what, tally in report.tallies.items()}
    assert told == {what: sorted(tally.names) for what, tally in real.tallies.items()}
    sizes = {what: (tally.objects, tally.bytes) for what, tally in report.tallies.items()}
    assert sizes == {what: (t.objects, t.bytes) for what, t in real.tallies.items()}


# ---- in the background


async def is_erased(store, process_id):
    return Record.model_validate_json((await store.get(record_key(process_id))).data).deleted


@on_local
async def test_workers_look_and_clean_only_when_nobody_has_for_a_while(store, tmp_path):
    await seed(store, ended("old", 60))
    first = cleaner(store, tmp_path)
    await clean_if_due(first, CleanReport())
    assert await is_erased(store, "old")
    second = cleaner(store, tmp_path, later=0)
    await clean_if_due(second, CleanReport())
    assert [call.name for call in second.store.calls] == ["get"]


@on_local
async def test_a_worker_cleans_by_itself(store, tmp_path):
    await seed(store, ended("old", 60))
    worker = cleaner(store, tmp_path, clean_seconds=0.05)
    keeping = asyncio.create_task(Cleaner(worker).keep())
    async with asyncio.timeout(PATIENCE):
        while not await is_erased(store, "old"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait([keeping])


@on_local
async def test_a_disk_that_cannot_be_tidied_keeps_no_worker_from_cleaning(
    store, tmp_path, monkeypatch, caplog
):
    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr("retention.cleaner.tidy_scratch", broken)
    await seed(store, ended("old", 60))
    keeping = asyncio.create_task(Cleaner(cleaner(store, tmp_path, clean_seconds=0.05)).keep())
    async with asyncio.timeout(PATIENCE):
        while not await is_erased(store, "old"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert "not tidied" in caplog.text
    keeping.cancel()
    await asyncio.wait([keeping])


@on_both_stores
async def test_of_many_that_find_it_due_at_once_one_cleans(store, tmp_path):
    await clean(cleaner(store, tmp_path), CleanReport())
    await seed(store, ended("old", 60))
    workers = [cleaner(store, tmp_path) for _ in range(6)]
    pauses = [worker.store.pause_after("get", "locks/retention") for worker in workers]
    cleaning = [asyncio.create_task(clean_if_due(worker, CleanReport())) for worker in workers]
    for pause in pauses:
        await pause.reached.wait()
    for pause in pauses:
        pause.go.set()
    await asyncio.gather(*cleaning)
    assert sum(bool(worker.store.asked("list")) for worker in workers) == 1
    assert await is_erased(store, "old")


@on_local
async def test_a_cleaner_that_is_stopped_leaves_the_rest_to_the_next(store, tmp_path):
    await full_store(store)
    worker = cleaner(store, tmp_path, clean_seconds=0.05)
    pause = worker.store.pause_before("delete", "processes/")
    keeping = asyncio.create_task(Cleaner(worker).keep())
    await pause.reached.wait()
    keeping.cancel()
    await asyncio.wait([keeping])
    assert keeping.cancelled()
    await nothing_old_is_left(store, tmp_path)


@on_local
async def test_a_worker_that_is_told_never_to_clean_asks_nothing(store, tmp_path):
    worker = cleaner(store, tmp_path, clean_seconds=0)
    await Cleaner(worker).keep()
    assert not worker.store.calls
