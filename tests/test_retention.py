"""Retention: what expired goes, all of it and nothing else, at a cost of what expired."""

import asyncio
import random
from contextlib import closing

import pytest

from inputs.touches import Touches, used_key
from records.index import ARCHIVES, DELETED, age_key, index_key
from records.keys import cancel_key, record_key
from records.record import Status, Writer
from retention.expired_processes import is_expired
from retention.lifecycle import lifecycle_rules
from storage import InvalidKey, ObjectChanged, StorageUnavailable
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
)
from tests.crowd import on_every_store
from tests.servers import client, keys_of, on_both_stores, on_local
from utils import new_nonce, utc_now


def requests(worker):
    return len(worker.store.calls)


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
    rows = [key for key in left if key.startswith(DELETED)]
    assert sorted(key.partition("~")[2] for key in rows) == ["old-1", "old-2"]
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
    from stores.local.store import LocalStore

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
    await store.put(age_key(DELETED, "p", days_ago(5)), b"")
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
    monkeypatch.setattr("retention.clean_run.BREATH_SECONDS", -1)
    monkeypatch.setattr("retention.sweep.ERASED_LONG_SECONDS", float("inf"))
    assert await cleaned(worker) == {}
    assert record_key("p") in await keys_of(store)
    monkeypatch.undo()
    assert await cleaned(worker) == {"erased records": 1}


# ---- archives


@on_every_store
async def test_an_archive_has_a_row_of_its_own_and_goes_by_it(crowd, tmp_path):
    owner = crowd.worker()
    await owner.start("p", artifacts=1)
    await owner("bulk_download", process_ids=["p"], archive=True, process_id="zip")
    record = await crowd.record("zip")
    assert await keys_of(crowd.store, ARCHIVES) == [age_key(ARCHIVES, "zip", record.created_at)]
    worker = cleaner(crowd.store, tmp_path, later=6, process_days=None)
    assert await cleaned(worker) == {}
    worker = cleaner(crowd.store, tmp_path, later=9, process_days=None)
    assert await cleaned(worker) == {"archives": 1}
    assert await keys_of(crowd.store, "processes/zip/") == [record_key("zip")]
    assert await keys_of(crowd.store, ARCHIVES) == []
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
async def test_a_folder_that_was_not_used_goes(store, tmp_path):
    await bring(store, "f")
    await bring(store, "f-1")
    assert await cleaned(cleaner(store, tmp_path, later=22)) == {"input folders": 2}
    assert await keys_of(store) == ["locks/retention"]


@on_both_stores
async def test_a_folder_that_was_used_since_is_kept(store, tmp_path):
    """Its files are old, but a process had it as input yesterday."""
    await bring(store, "f")
    before = await contents(store)
    assert await cleaned(cleaner(store, tmp_path, later=19)) == {}
    assert await contents(store) == before


@on_every_store
async def test_what_uses_a_folder_says_so_in_its_row(crowd):
    """Chunks, links, completion; and a start, also by another worker than the one it came by."""
    files, row = [{"path": "a", "size": 1}], [used_key("f")]
    for use in (
        {"chunk": {"path": "a", "offset": 0, "data": "eA=="}},
        {"files": [{"path": "b", "size": 1}]},
        {"complete": True, "files": files},
    ):
        await crowd.worker()("upload", folder="f", **use)
        assert await keys_of(crowd.store, "ages/") == row
        await crowd.store.delete(row)
    await crowd.worker()("start", kind="sleep", process_id="p", inputs={"x": "folder:f"})
    assert await keys_of(crowd.store, "ages/") == row


@on_local
async def test_a_worker_writes_down_the_use_of_a_folder_once_an_hour(store, tmp_path):
    worker = cleaner(store, tmp_path)
    touches = Touches(worker.store)
    for _ in range(3):
        await touches.touch("f")
    assert [call.name for call in worker.store.calls] == ["put"]


@on_local
async def test_rows_of_folders_are_looked_at_in_turn_at_a_bounded_cost(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr("retention.expired_inputs.SWEPT_ROWS", 4)
    for number in range(10):
        await bring(store, f"f{number}")
    removed = [(await cleaned(cleaner(store, tmp_path)))["input folders"] for _ in range(3)]
    assert removed == [4, 4, 2]


@on_local
async def test_a_row_without_a_folder_goes_unsaid(store, tmp_path):
    await store.put(used_key("never-brought"), b"")
    assert await cleaned(cleaner(store, tmp_path)) == {}
    assert await keys_of(store, "ages/") == []


@on_local
async def test_without_days_nothing_is_ever_removed(store, tmp_path):
    await bring(store, "f")
    await seed(store, ended("p", 90))
    await seed(store, ended("zip", 90, kind="archive"))
    before = await contents(store)
    worker = cleaner(store, tmp_path, process_days=None, archive_days=None, input_days=None)
    assert await cleaned(worker) == {}
    assert await contents(store) == before


# ---- odd objects


ODD = (
    "index/0-not-ours",
    "index/zzz/~~~",
    "ages/archives/2026-01-01/p",
    "ages/archives/zzz",
    "ages/deleted/x",
    "ages/inputs/.odd",
    "ages/inputs/2026-01-01/f",
    "ages/zzz",
    "processes/.odd/record.json",
    "processes/_odd/x",
)


@on_both_stores
async def test_foreign_objects_are_left_alone_and_stop_nothing(store, tmp_path):
    for key in ODD:
        await store.put(key, b"not ours")
    for name in ("a", "z"):
        await seed(store, ended(name, 60))
        await bring(store, name)
    assert await cleaned(cleaner(store, tmp_path)) == {"processes": 2, "input folders": 2}
    assert set(ODD) <= set(await keys_of(store))


@pytest.mark.parametrize("place", ["ceph"], indirect=True)
async def test_objects_that_no_worker_can_name_stop_nothing(
    ceph, store, place, tmp_path, monkeypatch
):
    """Only a bucket takes such keys: they have a backslash."""
    odd = ("index/zz\\", "ages/deleted/zz\\", "processes/b\\/x", "processes/b/attempts/1/\\")
    keys = [f"{place['prefix']}/{key}" for key in odd]
    monkeypatch.setattr("retention.sweep.SWEPT", 2)  # one of them ends a page
    with closing(client(ceph.endpoint_url, ceph.keys)) as s3:
        for key in keys:
            s3.put_object(Bucket=place["bucket"], Key=key, Body=b"1")
        for name in ("a", "b", "c"):
            await seed(store, ended(name, 60))
        assert await cleaned(cleaner(store, tmp_path)) == {"processes": 3}
        later = cleaner(store, tmp_path, later=LATER_DAYS + 2)
        assert await cleaned(later) == {"erased records": 3}
        for key in keys:
            s3.delete_object(Bucket=place["bucket"], Key=key)


@on_local
@pytest.mark.parametrize("fault", [ValueError("odd"), InvalidKey("odd")])
async def test_a_fault_of_one_object_stops_no_loop_over_many(
    store, tmp_path, monkeypatch, caplog, fault
):
    for name in ("a", "b", "c"):
        await seed(store, ended(name, 60))
        await store.put(f"processes/{name}-late/attempts/1/x", b"1")
    worker = cleaner(store, tmp_path)
    real = worker.store.get

    async def get(key, **options):
        if "/b" in key:
            raise fault
        return await real(key, **options)

    monkeypatch.setattr(worker.store, "get", get)
    assert await cleaned(worker) == {"processes": 2, "orphans": 2}
    assert "passed over" in caplog.text


@on_local
async def test_a_file_that_cannot_be_removed_keeps_no_other_process(store, tmp_path, caplog):
    """The holder of a link can lock an object, and a policy of the bucket can protect some."""
    for name in ("a", "b", "c"):
        await seed(store, ended(name, 60), files=2)
    worker = cleaner(store, tmp_path)
    worker.store.refuse("delete", "processes/b/attempts/")
    assert await cleaned(worker) == {"processes": 2, "refused by the store": 1}
    assert "process b cannot be removed" in caplog.text
    assert {key.split("/")[1] for key in await keys_of(store) if "/attempts/" in key} == {"b"}
    await cleaned(cleaner(store, tmp_path))
    assert not any("/attempts/" in key for key in await keys_of(store))


@on_local
async def test_a_note_that_cannot_be_removed_keeps_no_erased_record(store, tmp_path):
    for name in ("a", "b", "c"):
        await seed(store, ended(name, 31))
    await store.put(cancel_key("b"), b"{}")
    await cleaned(cleaner(store, tmp_path))
    worker = cleaner(store, tmp_path, later=LATER_DAYS + 2)
    worker.store.refuse("delete", cancel_key("b"))
    assert (await cleaned(worker))["refused by the store"] >= 1
    assert await keys_of(store) == ["locks/retention", cancel_key("b")]


@on_local
async def test_a_record_that_cannot_be_read_keeps_no_other_process(store, tmp_path):
    for name in ("a", "b", "c"):
        await seed(store, ended(name, 60))
    worker = cleaner(store, tmp_path)
    worker.store.refuse("get", record_key("b"))
    assert await cleaned(worker) == {"processes": 2}


# ---- two at once


@on_both_stores
async def test_two_cleaners_at_once_remove_what_one_would(store, tmp_path):
    for number in range(40):
        await seed(store, ended(f"p{number}", 60))
    young = ended("young", 1)
    await seed(store, young)
    await bring(store, "f")
    found = await asyncio.gather(*(cleaned(cleaner(store, tmp_path)) for _ in range(2)))
    assert sum(each.get("processes", 0) for each in found) >= 40
    assert await keys_of(store, "index/") == [index_key(young)]
    assert await keys_of(store, "inputs/") == []
    await cleaned(cleaner(store, tmp_path, later=LATER_DAYS + 2))
    assert sorted(await keys_of(store, "processes/")) == [
        "processes/young/attempts/1/artifacts/0",
        record_key("young"),
    ]


@on_both_stores
async def test_a_cleaner_that_was_frozen_for_days_removes_no_files(store, tmp_path, monkeypatch):
    """It had erased a record and listed the files; then the id was buried and used again."""
    await seed(store, ended("p", 60))
    frozen = cleaner(store, tmp_path)
    pause = frozen.store.pause_after("list", "processes/p/attempts/")
    sleeping = asyncio.create_task(cleaned(frozen))
    await pause.reached.wait()
    await store.delete(await keys_of(store, "processes/"))
    await store.delete(await keys_of(store, "index/"))
    await seed(store, ended("p", 1))
    before = await contents(store)
    monkeypatch.setattr("processes.removal.REMOVAL_SECONDS", 0)
    pause.go.set()
    with pytest.raises(StorageUnavailable):
        await sleeping
    assert await contents(store) == before


@on_local
async def test_a_removal_that_goes_on_erases_the_record_again(store, tmp_path):
    """Or another cleaner could bury it, and a start use its id, while the files still go."""
    await seed(store, ended("p", 60))
    first = cleaner(store, tmp_path)
    first.store.fail("delete", "processes/p/")
    with pytest.raises(StorageUnavailable):
        await cleaned(first)
    second = cleaner(store, tmp_path)
    assert await cleaned(second) == {"processes": 1}
    (erased,) = [call.record for call in second.store.asked("replace", key="record.json")]
    assert erased.deleted


# ---- what a bucket can do by itself


def test_no_rule_of_a_bucket_reaches_what_only_records_can_tell_of(tmp_path):
    rules = lifecycle_rules(cleaner(_Nowhere(), tmp_path, prefix="team/a").settings)["Rules"]
    expiring = [rule["Filter"]["Prefix"] for rule in rules if "Expiration" in rule]
    assert sorted(expiring) == ["team/a/locks/check-", "team/a/locks/probe-", "team/a/workers/"]
    (uploads,) = [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule]
    assert uploads["Filter"] == {"Prefix": "team/a/"}
