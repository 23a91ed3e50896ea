"""Retention: what expired goes, all of it and nothing else, at a cost of what expired."""

import asyncio
import random

import pytest

from inputs.touches import age_key, used_key
from processes.index import index_key
from processes.record import Status, Writer, cancel_key, record_key
from processes.removal import erased_age_key
from storage import ObjectChanged
from tests.aged import (
    LATER_DAYS,
    bring,
    cleaned,
    cleaner,
    contents,
    days_ago,
    ended,
    seed,
    seed_folder,
    today,
)
from tests.crowd import on_every_store
from tests.servers import keys_of, on_both_stores, on_local
from upkeep.expired_processes import is_expired
from upkeep.lifecycle import lifecycle_rules
from utils import day_of, new_nonce, utc_now


def requests(worker):
    """What a run has asked; its lock's heartbeats follow the clock and not what there is."""
    return len([call for call in worker.store.calls if not call.key.startswith("locks/retention")])


# ---- processes


@on_both_stores
async def test_what_ended_long_ago_goes_and_nothing_else_is_touched(store, tmp_path):
    for name, days in (("old-1", 31), ("old-2", 90), ("young-1", 29), ("young-2", 1)):
        await seed(store, ended(name, days), files=3)
    await seed(store, ended("long", 1, lasted_days=60))
    young = {key: it for key, it in (await contents(store)).items() if "old" not in key}
    assert await cleaned(cleaner(store, tmp_path)) == {"processes": 2}
    left = await contents(store)
    assert {key: left[key] for key in young} == young
    erased = [record_key(name) for name in ("old-1", "old-2")]
    rows = [erased_age_key(name, today()) for name in ("old-1", "old-2")]
    assert sorted(left.keys() - young.keys()) == sorted(erased + rows)


@on_both_stores
async def test_two_days_later_the_erased_records_are_gone_too(store, tmp_path):
    await seed(store, ended("old", 31))
    await store.put(cancel_key("old"), b"{}")
    await cleaned(cleaner(store, tmp_path))
    assert await cleaned(cleaner(store, tmp_path, later=LATER_DAYS + 2)) == {"erased records": 1}
    assert await keys_of(store) == ["locks/retention"]


async def count_requests(tmp_path, *, there, expired):
    """What a run costs, with so many processes, so many of them expired."""
    from stores.local_store import LocalStore

    store = LocalStore(tmp_path / f"store-{there}")
    records = [ended(f"p{n:05d}", 60 if n >= there - expired else 5) for n in range(there)]
    await asyncio.to_thread(seed_folder, tmp_path / f"store-{there}", records)
    worker = cleaner(store, tmp_path)
    assert (await cleaned(worker)).get("processes", 0) == expired
    rows = len(await keys_of(store, "index/"))
    await store.close()
    assert rows == there - expired
    return requests(worker)


async def test_200_expired_of_20000_cost_what_200_of_2000_do(tmp_path):
    few = await count_requests(tmp_path, there=2000, expired=200)
    many = await count_requests(tmp_path, there=20_000, expired=200)
    assert many == few
    assert many < 5 * 200 + 300  # a GET, a write, a LIST and a row each; the sweep's 200


@pytest.mark.parametrize("place", ["ceph"], indirect=True)
async def test_in_a_bucket_20_expired_of_2000_cost_requests_in_proportion(store, tmp_path):
    turn = asyncio.Semaphore(32)

    async def put(number):
        async with turn:
            await seed(store, ended(f"p{number:04d}", 60 if number >= 1980 else 5), files=0)

    await asyncio.gather(*(put(number) for number in range(2000)))
    worker = cleaner(store, tmp_path)
    assert await cleaned(worker) == {"processes": 20}
    assert requests(worker) < 5 * 20 + 300


async def test_nothing_that_expired_costs_as_much_as_an_empty_store(tmp_path):
    assert await count_requests(tmp_path, there=100, expired=0) == await count_requests(
        tmp_path, there=500, expired=0
    )


@on_every_store
async def test_a_live_process_is_not_touched_however_old_it_is(crowd, tmp_path):
    """It was created before all that is kept; its owner goes on writing its record."""
    owner = crowd.worker()
    running = await owner.running("p")
    worker = cleaner(crowd.store, tmp_path, later=0, process_days=1e-6)
    await cleaned(worker)
    assert worker.store.asked("get", key="processes/p/record.json")  # it was looked at
    assert (await owner("process_status", process_id="p"))["status"] == "running"
    assert (await crowd.record("p")).attempt == 1
    assert (await owner("cancel", process_id="p"))["status"] == "cancelled"
    await running


@pytest.mark.parametrize(
    ("age_days", "written_days", "status", "expired"),
    [
        (31, 31, Status.COMPLETED, True),
        (31, 29, Status.COMPLETED, False),  # the store's clock was set wrong, or its files copied
        (29, 31, Status.COMPLETED, False),  # the worker's clock was
        (31, 31, Status.INTERRUPTED, True),
        (31, 31, Status.RUNNING, True),  # nobody has held it for a month
        (29, 29, Status.RUNNING, False),
    ],
)
def test_both_clocks_must_say_that_it_expired(tmp_path, age_days, written_days, status, expired):
    record = ended("p", written_days, status=status)
    settings = cleaner(_Nowhere(), tmp_path).settings
    now = days_ago(0).timestamp()
    assert is_expired(record, age_days * 86400, now, settings) == expired


def test_a_record_of_unknown_age_has_not_expired(tmp_path):
    settings = cleaner(_Nowhere(), tmp_path).settings
    assert not is_expired(ended("p", 1000), None, days_ago(0).timestamp(), settings)


def test_an_owner_that_sits_out_an_outage_is_given_a_day(tmp_path):
    settings = cleaner(_Nowhere(), tmp_path, process_days=0.01).settings
    now = days_ago(0).timestamp()
    for status, expired in ((Status.COMPLETED, True), (Status.RUNNING, False)):
        record = ended("p", 0.9, status=status)
        assert is_expired(record, 0.9 * 86400, now, settings) == expired


class _Nowhere:
    url = "nowhere"


def claim(leases, record, version):
    """What a delivery that resumes the process does."""
    writer = Writer(worker_id="other", nonce=new_nonce())
    claimed = record.claimed(writer, utc_now(), reason="delivered again")
    return leases.claim(claimed, version, utc_now)


async def interrupted(store):
    record = ended("p", 60, status=Status.INTERRUPTED)
    await seed(store, record)
    return record, (await store.get(record_key("p"))).version


@on_both_stores
async def test_who_resumes_a_process_before_it_is_erased_keeps_it(store, tmp_path):
    record, version = await interrupted(store)
    worker = cleaner(store, tmp_path)
    pause = worker.store.pause_before("replace", "record.json")
    cleaning = asyncio.create_task(cleaned(worker))
    await pause.reached.wait()
    await claim(worker, record, version)
    pause.go.set()
    assert await cleaning == {}
    assert "processes/p/attempts/1/artifacts/0" in await keys_of(store)


@on_both_stores
async def test_of_a_resumption_and_a_removal_exactly_one_wins(store, tmp_path):
    for _ in range(20):
        record, version = await interrupted(store)
        worker = cleaner(store, tmp_path)

        async def resume():
            await asyncio.sleep(random.uniform(0, 0.03))  # noqa: S311
            try:
                await claim(worker, record, version)  # noqa: B023
            except ObjectChanged:
                return False
            return True

        removed, resumed = await asyncio.gather(cleaned(worker), resume())
        assert resumed == ("processes" not in removed)
        found = (await store.get(record_key("p"))).data
        assert (b'"deleted":false' in found) == resumed
        assert ("processes/p/attempts/1/artifacts/0" in await keys_of(store)) == resumed
        await store.delete(await keys_of(store))


@on_local
async def test_an_id_that_was_used_again_keeps_its_new_process(store, tmp_path):
    """A run was cut short before it removed the old row; then the id was used again."""
    old, new = ended("p", 60), ended("p", 1)
    await seed(store, new)
    await store.put(index_key(old), b"")
    assert await cleaned(cleaner(store, tmp_path)) == {"rows that led nowhere": 1}
    assert await keys_of(store, "index/") == [index_key(new)]


@on_local
async def test_an_erased_record_whose_id_is_used_again_is_not_removed(store, tmp_path):
    await store.put(erased_age_key("p", day_of(days_ago(5))), b"")
    await seed(store, ended("p", 1))
    before = await contents(store, "processes/")
    await cleaned(cleaner(store, tmp_path))
    assert await contents(store, "processes/") == before
    assert await keys_of(store, "ages/") == []


@on_local
async def test_who_was_frozen_before_it_removes_an_erased_record_does_not(
    store, tmp_path, monkeypatch
):
    """Between the look and the removal the id may have been used again."""
    await seed(store, ended("p", 60))
    await cleaned(cleaner(store, tmp_path))
    worker = cleaner(store, tmp_path, later=LATER_DAYS + 2)
    monkeypatch.setattr("upkeep.clean_run.BREATH_SECONDS", -1)
    assert await cleaned(worker) == {}
    assert record_key("p") in await keys_of(store)
    monkeypatch.undo()
    assert await cleaned(worker) == {"erased records": 1}


# ---- archives


@on_every_store
async def test_an_archive_has_a_row_of_its_day_and_goes_by_it(crowd, tmp_path):
    owner = crowd.worker()
    await owner.start("p", artifacts=1)
    await owner("bulk_download", process_ids=["p"], archive=True, process_id="zip")
    assert await keys_of(crowd.store, "ages/archives/") == [
        f"ages/archives/{day_of(utc_now())}/zip"
    ]
    worker = cleaner(crowd.store, tmp_path, later=6, process_days=None)
    assert await cleaned(worker) == {}
    worker = cleaner(crowd.store, tmp_path, later=9, process_days=None)
    assert await cleaned(worker) == {"archives": 1}
    assert await keys_of(crowd.store, "processes/zip/") == [record_key("zip")]
    assert await keys_of(crowd.store, "ages/archives/") == []
    assert (await owner("process_status", process_id="p"))["status"] == "completed"


@on_local
async def test_archives_are_kept_by_their_own_days(store, tmp_path):
    for name, kind in (("zip", "archive"), ("p", "sleep")):
        await seed(store, ended(name, 40, kind=kind))
    worker = cleaner(store, tmp_path, archive_days=50)
    assert await cleaned(worker) == {"processes": 1}
    assert (await cleaned(cleaner(store, tmp_path, archive_days=10)))["archives"] == 1


# ---- input folders


@on_both_stores
async def test_a_folder_that_nobody_used_goes(store, tmp_path):
    await bring(store, "f", used_days_ago=LATER_DAYS)
    await bring(store, "f-1", used_days_ago=LATER_DAYS)
    assert await cleaned(cleaner(store, tmp_path)) == {"input folders": 2}
    assert await keys_of(store) == ["locks/retention"]


@on_both_stores
async def test_a_folder_that_was_used_since_is_kept_and_looked_at_again_later(store, tmp_path):
    """Its files are old; its row is, too; but a process had it as input yesterday."""
    await bring(store, "f", used_days_ago=LATER_DAYS + 50)  # by a row of long ago
    before = await contents(store, "inputs/")
    worker = cleaner(store, tmp_path, later=19)
    assert await cleaned(worker) == {}
    assert await contents(store, "inputs/") == before
    assert await keys_of(store, "ages/inputs/") == [f"ages/inputs/{day_of(utc_now())}/f"]
    assert await cleaned(cleaner(store, tmp_path, later=22)) == {"input folders": 1}


@on_every_store
async def test_what_uses_a_folder_says_so(crowd):
    """Links and completion; and a start, also by another worker than the one that brought it."""
    worker = crowd.worker()
    await worker("upload", folder="f", chunk={"path": "a", "offset": 0, "data": "eA=="})
    files = [{"path": "a", "size": 1}]
    await worker("upload", folder="f", complete=True, files=files)
    used = [used_key("f")]
    assert await keys_of(crowd.store, "ages/") == [age_key(day_of(utc_now()), "f"), *used]
    await crowd.store.delete(used)
    other = crowd.worker()
    await other("start", kind="sleep", process_id="p", inputs={"x": "folder:f"})
    assert await keys_of(crowd.store, "ages/used/") == used


@on_local
async def test_a_worker_writes_down_the_use_of_a_folder_once_an_hour(store, tmp_path):
    worker = cleaner(store, tmp_path)
    for _ in range(3):
        await worker.touches.touch("f")
    assert len(worker.store.calls) == 3  # a look, and two zero-byte objects


@on_local
async def test_a_file_that_came_by_an_old_link_keeps_its_folder(store, tmp_path):
    await bring(store, "f", used_days_ago=LATER_DAYS + 50)
    await store.delete([used_key("f")])
    assert await cleaned(cleaner(store, tmp_path, later=19)) == {}
    assert "inputs/f/a" in await keys_of(store)


@on_local
async def test_a_folder_whose_use_nobody_wrote_down_begins_to_count_when_it_is_seen(
    store, tmp_path
):
    await store.put("inputs/by-hand/a", b"1")
    assert await cleaned(cleaner(store, tmp_path)) == {}
    assert await keys_of(store, "ages/inputs/") == [f"ages/inputs/{today()}/by-hand"]
    later = cleaner(store, tmp_path, later=LATER_DAYS + 22)
    assert await cleaned(later) == {"input folders": 1}


@on_local
async def test_without_days_nothing_is_ever_removed(store, tmp_path):
    await bring(store, "f", used_days_ago=LATER_DAYS)
    await seed(store, ended("p", 90))
    await seed(store, ended("zip", 90, kind="archive"))
    before = await contents(store)
    worker = cleaner(store, tmp_path, process_days=None, archive_days=None, input_days=None)
    assert await cleaned(worker) == {}
    assert await contents(store) == before


# ---- what a bucket can do by itself


def test_no_rule_of_a_bucket_reaches_what_only_records_can_tell_of(tmp_path):
    rules = lifecycle_rules(cleaner(_Nowhere(), tmp_path, prefix="team/a").settings)["Rules"]
    expiring = [rule["Filter"]["Prefix"] for rule in rules if "Expiration" in rule]
    assert sorted(expiring) == ["team/a/locks/check-", "team/a/locks/probe-", "team/a/workers/"]
    (uploads,) = [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule]
    assert uploads["Filter"] == {"Prefix": "team/a/"}
