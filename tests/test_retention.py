"""Retention: what expired goes, all of it and nothing else, at a cost of what expired."""

import asyncio
import random
import signal
from pathlib import Path

import pytest

from inputs.touches import Touches, age_key, used_key
from processes.index import index_key, read_rows
from processes.lease import Lease
from processes.record import Record, Status, Writer, cancel_key, record_key
from processes.removal import erased_age_key
from storage import ObjectChanged, StorageUnavailable
from tests.aged import LATER_DAYS, cleaned, cleaner, days_ago, ended, seed, seed_folder
from tests.crowd import on_every_store
from tests.mortal_cleaner import run_to_its_death
from tests.patience import PATIENCE
from tests.servers import keys_of
from upkeep.clean_run import AT_ONCE, CleanReport, CleanRun
from upkeep.expired_processes import is_expired
from upkeep.lifecycle import lifecycle_rules
from upkeep.retention import RETENTION, Cleaner, clean
from upkeep.store_lock import LockDocument, StoreLock
from upkeep.sweep import MOST_SWEPT, in_turn, pace
from utils import day_of, new_nonce, utc_now

on_both_stores = pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)
here = pytest.mark.parametrize("place", ["local"], indirect=True)
TODAY = day_of(days_ago(0))


async def contents(store, prefix=""):
    """Everything, by key: what it holds and when it was written. Without the cleaner's lock."""
    rows = (await store.list(prefix)).objects
    return {
        row.key: ((await store.get(row.key)).data, row.modified)
        for row in rows
        if row.key != "locks/retention"
    }


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
    rows = [erased_age_key(name, TODAY) for name in ("old-1", "old-2")]
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


def test_an_owner_that_sits_out_an_outage_is_given_a_day(tmp_path):
    settings = cleaner(_Nowhere(), tmp_path, process_days=0.01).settings
    now = days_ago(0).timestamp()
    for status, expired in ((Status.COMPLETED, True), (Status.RUNNING, False)):
        record = ended("p", 0.9, status=status)
        assert is_expired(record, 0.9 * 86400, now, settings) == expired


class _Nowhere:
    url = "nowhere"


def claim(worker, record, version):
    """What a delivery that resumes the process does."""
    writer = Writer(worker_id="other", nonce=new_nonce())
    claimed = record.claimed(writer, utc_now(), reason="delivered again")
    return Lease.claim(worker, claimed, version, utc_now)


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


@here
async def test_an_id_that_was_used_again_keeps_its_new_process(store, tmp_path):
    """A run was cut short before it removed the old row; then the id was used again."""
    old, new = ended("p", 60), ended("p", 1)
    await seed(store, new)
    await store.put(index_key(old), b"")
    assert await cleaned(cleaner(store, tmp_path)) == {"rows that led nowhere": 1}
    assert await keys_of(store, "index/") == [index_key(new)]


@here
async def test_an_erased_record_whose_id_is_used_again_is_not_removed(store, tmp_path):
    await store.put(erased_age_key("p", day_of(days_ago(5))), b"")
    await seed(store, ended("p", 1))
    before = await contents(store, "processes/")
    await cleaned(cleaner(store, tmp_path))
    assert await contents(store, "processes/") == before
    assert await keys_of(store, "ages/") == []


@here
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


@here
async def test_archives_are_kept_by_their_own_days(store, tmp_path):
    for name, kind in (("zip", "archive"), ("p", "sleep")):
        await seed(store, ended(name, 40, kind=kind))
    worker = cleaner(store, tmp_path, archive_days=50)
    assert await cleaned(worker) == {"processes": 1}
    assert (await cleaned(cleaner(store, tmp_path, archive_days=10)))["archives"] == 1


# ---- input folders


async def bring(store, folder, *, used_days_ago):
    """An input folder that was used so long before the cleaner comes."""
    await Touches(store, lambda: days_ago(used_days_ago)).touch(folder)
    for name in ("a", "b/c", ".worker/manifest.json"):
        await store.put(f"inputs/{folder}/{name}", b"12")


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


@here
async def test_a_worker_writes_down_the_use_of_a_folder_once_an_hour(store, tmp_path):
    worker = cleaner(store, tmp_path)
    for _ in range(3):
        await worker.touches.touch("f")
    assert len(worker.store.calls) == 3  # a look, and two zero-byte objects


@here
async def test_a_file_that_came_by_an_old_link_keeps_its_folder(store, tmp_path):
    await bring(store, "f", used_days_ago=LATER_DAYS + 50)
    await store.delete([used_key("f")])
    assert await cleaned(cleaner(store, tmp_path, later=19)) == {}
    assert "inputs/f/a" in await keys_of(store)


@here
async def test_a_folder_whose_use_nobody_wrote_down_begins_to_count_when_it_is_seen(
    store, tmp_path
):
    await store.put("inputs/by-hand/a", b"1")
    assert await cleaned(cleaner(store, tmp_path)) == {}
    assert await keys_of(store, "ages/inputs/") == [f"ages/inputs/{TODAY}/by-hand"]
    later = cleaner(store, tmp_path, later=LATER_DAYS + 22)
    assert await cleaned(later) == {"input folders": 1}


@here
async def test_without_days_nothing_is_ever_removed(store, tmp_path):
    await bring(store, "f", used_days_ago=LATER_DAYS)
    await seed(store, ended("p", 90))
    await seed(store, ended("zip", 90, kind="archive"))
    before = await contents(store)
    worker = cleaner(store, tmp_path, process_days=None, archive_days=None, input_days=None)
    assert await cleaned(worker) == {}
    assert await contents(store) == before


# ---- what no row leads to


@here
async def test_the_sweep_mends_rows_and_removes_what_nobody_owns(store, tmp_path):
    lost = ended("no-row", 1)
    await store.put(record_key("no-row"), lost.encode())
    stale = ended("stale-row", 1)
    await seed(store, stale)
    await store.put(index_key(stale, Status.RUNNING), b"")
    await store.put("processes/gone/attempts/1/artifacts/late", b"12345")
    await store.put(cancel_key("never"), b"{}")
    assert await cleaned(cleaner(store, tmp_path)) == {"rows mended": 2, "orphans": 2}
    assert await keys_of(store, "processes/gone/") == []
    assert await keys_of(store, "processes/never/") == []
    assert sorted(await keys_of(store, "index/")) == sorted([index_key(lost), index_key(stale)])


@on_both_stores
@pytest.mark.parametrize("became", ["resumed", "deleted", "used again"])
async def test_a_process_that_changes_while_its_row_is_mended_has_its_own_row(
    store, tmp_path, became
):
    """The row that its new owner shows is not replaced by the one that was read before."""
    old = ended("p", 1, status=Status.INTERRUPTED)
    await store.put(record_key("p"), old.encode())
    me = Writer(worker_id="new", nonce=new_nonce())
    now = {
        "resumed": old.claimed(me, days_ago(0), reason="resumed").running(days_ago(0)),
        "deleted": old.erased(me),
        "used again": ended("p", 0.5, status=Status.RUNNING),
    }[became]
    worker = cleaner(store, tmp_path)
    pause = worker.store.pause_before("put", "index/")
    cleaning = asyncio.create_task(cleaned(worker))
    await pause.reached.wait()
    await store.put(record_key("p"), now.encode())
    expected = [] if became == "deleted" else [index_key(now)]
    for row in expected:
        await store.put(row, b"")
    pause.go.set()
    assert await cleaning == {"rows mended": 1}
    assert await keys_of(store, "index/") == expected


@here
async def test_what_has_no_record_since_a_moment_may_be_a_process_that_begins(store, tmp_path):
    await store.put(cancel_key("new"), b"{}")
    assert await cleaned(cleaner(store, tmp_path, later=0)) == {}
    assert await keys_of(store, "processes/") == [cancel_key("new")]


@here
async def test_the_sweep_comes_to_everything_in_turn_at_a_constant_cost(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr("upkeep.sweep.SWEPT", 4)
    for number in range(10):
        await store.put(f"processes/p{number}/attempts/1/artifacts/late", b"1")
    removed = [(await cleaned(cleaner(store, tmp_path)))["orphans"] for _ in range(3)]
    assert removed == [4, 4, 2]


def runs_of_a_round(there):
    runs = seen = 0
    while seen < there:
        runs, seen = runs + 1, seen + pace(seen)
    return runs


def test_the_sweep_goes_by_what_its_round_has_seen():
    assert [pace(seen) for seen in (0, 7200, 7271, 7272, 720_000)] == [100, 100, 100, 101, 10_000]
    assert pace(0, 20) == 20
    assert pace(10**12) == MOST_SWEPT
    assert runs_of_a_round(7200) == 72
    assert 24 < runs_of_a_round(10_000_000) / 24 < 26  # days


class _Sweep:
    """Runs of a sweep that only writes down what it is shown, without a lock."""

    def __init__(self, worker, cursors):
        self.cursors, self.shown = cursors, []
        self._run = CleanRun(worker, CleanReport(), None, 0)

    async def go(self, least):
        """How many it is shown."""
        before = len(self.shown)
        await in_turn(self._run, self.cursors, "processes", self._look_at, least=least)
        return len(self.shown) - before

    async def _look_at(self, name):
        self.shown.append(name)


def put_folders(place, there, under="processes"):
    """So many at once, in the folder of a `LocalStore`. Their names."""
    names = [f"p{number:05d}" for number in range(there)]
    for name in names:
        folder = Path(place["root"], under, name)
        folder.mkdir(parents=True)
        (folder / "x").touch()
    return names


@here
async def test_a_round_grows_and_the_next_one_begins_small_again(store, place, tmp_path):
    names = put_folders(place, 900)
    sweep = _Sweep(cleaner(store, tmp_path), {"processes": names[199], "processes seen": "14400"})
    # A 72nd of 14,400, of 14,600, of 14,802, and what is left.
    assert [await sweep.go(100) for _ in range(4)] == [200, 202, 205, 93]
    assert sweep.shown == names[200:]
    assert sweep.cursors == {"processes": "", "processes seen": "0"}
    assert await sweep.go(100) == 100
    assert sweep.cursors == {"processes": names[99], "processes seen": "100"}


@here
async def test_a_large_run_comes_by_the_page(store, place, tmp_path):
    names = put_folders(place, 1500)
    worker = cleaner(store, tmp_path)
    sweep = _Sweep(worker, {"processes": names[0], "processes seen": str(72 * 1100)})
    assert await sweep.go(100) == 1100
    assert sweep.shown == names[1:1101]
    assert len(worker.store.asked("list_folders")) == 2


@here
@pytest.mark.parametrize("count", [None, "", "many", "-7200", "7200.5", "9" * 5000])
async def test_a_count_that_is_none_is_none_seen(store, place, tmp_path, count):
    names = put_folders(place, 20)
    cursors = {"processes": names[3]} | ({} if count is None else {"processes seen": count})
    sweep = _Sweep(cleaner(store, tmp_path), cursors)
    assert await sweep.go(4) == 4
    assert sweep.cursors == {"processes": names[7], "processes seen": "4"}


@here
async def test_a_count_without_a_cursor_is_of_a_round_that_is_over(store, place, tmp_path):
    """An older version came to the end: it knows of no count."""
    put_folders(place, 20)
    sweep = _Sweep(cleaner(store, tmp_path), {"processes": "", "processes seen": "7200"})
    assert await sweep.go(4) == 4


@here
@pytest.mark.parametrize("cursors", [b'{"processes seen": 5}', b'{"processes": null}', b"[]"])
async def test_a_damaged_lock_has_the_sweep_begin_anew(store, tmp_path, cursors):
    await store.put(cancel_key("p"), b"{}")
    await store.put("locks/retention", b'{"cursors": ' + cursors + b"}")
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 1}


async def cursors_of(store):
    stored = await store.get("locks/retention")
    return LockDocument.model_validate_json(stored.data).cursors


@here
async def test_the_next_cleaner_goes_on_at_the_pace_that_the_last_one_came_to(
    store, place, tmp_path
):
    names = put_folders(place, 400)
    lock = StoreLock(store, cleaner(store, tmp_path).settings, RETENTION)
    await lock.take()
    lock.cursors.update({"processes": names[49], "processes seen": "10800"})
    await lock.release()
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 150}
    assert (await cursors_of(store))["processes seen"] == "10950"
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 152}
    assert await keys_of(store, "processes/") == [
        f"processes/{name}/x" for name in names[:50] + names[352:]
    ]


@here
@pytest.mark.parametrize("back", [True, False])
async def test_a_sweep_that_is_broken_off_has_lost_its_last_few_and_no_more(
    store, place, tmp_path, back
):
    """Its store goes away in the third batch, and is back for the lock's release, or not."""
    names = put_folders(place, 3 * AT_ONCE)
    worker = cleaner(store, tmp_path, heartbeat_seconds=0.001)
    pause = worker.store.pause_before("get", record_key(names[2 * AT_ONCE]))
    cleaning = asyncio.create_task(cleaned(worker))
    await pause.reached.wait()
    if back:
        cleaning.cancel()
    else:
        worker.store.away = True
        pause.go.set()
    await asyncio.wait([cleaning])
    assert (b'"holder":null' in (await store.get("locks/retention")).data) == back
    assert await cursors_of(store) == {
        "processes": names[2 * AT_ONCE - 1], "processes seen": str(2 * AT_ONCE)
    }  # fmt: skip


@here
async def test_folders_come_in_turn_at_the_same_pace(store, place, tmp_path):
    put_folders(place, 70, under="inputs")
    worker = cleaner(store, tmp_path)
    counts = []
    for seen in (None, "2160"):
        if seen:
            lock = StoreLock(store, worker.settings, RETENTION)
            await lock.take()
            lock.cursors["inputs seen"] = seen
            await lock.release()
        await cleaned(worker)
        counts.append(len(await keys_of(store, "ages/used/")))
    assert counts == [20, 50]


@here
async def test_a_live_process_is_left_to_its_owner_by_the_sweep(store, tmp_path):
    record = ended("p", LATER_DAYS, status=Status.RUNNING)  # written a moment ago
    await store.put(record_key("p"), record.encode())
    await cleaned(cleaner(store, tmp_path, later=0))
    assert await keys_of(store, "index/") == []


@here
async def test_two_rows_of_one_process_are_shown_as_one_and_become_one(store, tmp_path):
    record = ended("p", 1)
    await seed(store, record)
    await store.put(index_key(record, Status.RUNNING), b"")
    rows, _ = await read_rows(store, limit=1000, cursor=None, status=None, kind=None)
    assert [row.status for row in rows] == [Status.COMPLETED]
    await cleaned(cleaner(store, tmp_path))
    assert await keys_of(store, "index/") == [index_key(record)]


@here
async def test_what_workers_left_in_the_store_goes(store, tmp_path):
    for key in ("locks/check-1", "locks/probe-1/plain", "workers/w.json", "locks/other"):
        await store.put(key, b"1")
    assert await cleaned(cleaner(store, tmp_path, later=0.5)) == {}
    assert await cleaned(cleaner(store, tmp_path)) == {"workers' leftovers": 3}
    assert await keys_of(store) == ["locks/other", "locks/retention"]


# ---- a run that is cut short


async def full_store(store):
    for name, kind in (("a", "sleep"), ("b", "sleep"), ("zip", "archive")):
        await seed(store, ended(name, 60, kind=kind), files=2)
    await bring(store, "f", used_days_ago=LATER_DAYS)
    await store.put(index_key(ended("gone", 70)), b"")
    await seed(store, ended("young", 1))


async def nothing_old_is_left(store, tmp_path):
    """After one more run, and another two days later."""
    await cleaned(cleaner(store, tmp_path, later=LATER_DAYS + 1))
    await cleaned(cleaner(store, tmp_path, later=LATER_DAYS + 4))
    left = {key.partition("~")[2] or key for key in await keys_of(store)}
    assert left == {
        "locks/retention", record_key("young"), "processes/young/attempts/1/artifacts/0",
        "young~sleep~completed",
    }  # fmt: skip


@here
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
    assert b'"holder":null' not in (await store.get("locks/retention")).data
    await nothing_old_is_left(store, tmp_path)


@here
async def test_a_store_that_goes_away_ends_the_run_and_is_no_fault(store, tmp_path, caplog):
    await full_store(store)
    worker = cleaner(store, tmp_path)
    worker.store.fail("delete", "processes/", nth=1)
    with pytest.raises(StorageUnavailable):
        await cleaned(worker)
    await nothing_old_is_left(store, tmp_path)
    worker.store.away = True
    with pytest.raises(StorageUnavailable):
        await Cleaner(worker)._clean_if_due()


# ---- a dry run


@on_both_stores
async def test_a_dry_run_tells_what_would_go_and_changes_nothing(store, tmp_path):
    await full_store(store)
    await store.put(cancel_key("never"), b"{}")
    erased = ended("erased", 60).erased(Writer(worker_id="w", nonce=new_nonce()))
    await store.put(record_key("erased"), erased.encode())
    await store.put(erased_age_key("erased", day_of(days_ago(5))), b"")
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


@here
async def test_workers_look_and_clean_only_when_nobody_has_for_a_while(store, tmp_path):
    await seed(store, ended("old", 60))
    first = cleaner(store, tmp_path)
    await Cleaner(first)._clean_if_due()
    assert erased_age_key("old", TODAY) in await keys_of(store)
    second = cleaner(store, tmp_path, later=0)
    await Cleaner(second)._clean_if_due()
    assert [call.name for call in second.store.calls] == ["get"]


@here
async def test_a_worker_cleans_by_itself(store, tmp_path):
    await seed(store, ended("old", 60))
    worker = cleaner(store, tmp_path, clean_seconds=0.05)
    keeping = asyncio.create_task(Cleaner(worker).keep())
    while erased_age_key("old", TODAY) not in await keys_of(store):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert Record.model_validate_json((await store.get(record_key("old"))).data).deleted
    keeping.cancel()
    await asyncio.wait([keeping])


@here
async def test_a_disk_that_cannot_be_tidied_keeps_no_worker_from_cleaning(
    store, tmp_path, monkeypatch, caplog
):
    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr("upkeep.retention.tidy_scratch", broken)
    await seed(store, ended("old", 60))
    keeping = asyncio.create_task(Cleaner(cleaner(store, tmp_path, clean_seconds=0.05)).keep())
    async with asyncio.timeout(PATIENCE):
        while erased_age_key("old", TODAY) not in await keys_of(store):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert "not tidied" in caplog.text
    keeping.cancel()
    await asyncio.wait([keeping])


async def in_the_middle_of_it(store, tmp_path):
    """A cleaner that has the lock and is about to remove files, its task, and its worker."""
    await seed(store, ended("old", 60))
    worker = cleaner(store, tmp_path, clean_seconds=0.05)
    pause = worker.store.pause_before("delete", "processes/")
    it = Cleaner(worker)
    keeping = asyncio.create_task(it.keep())
    await pause.reached.wait()
    return it, keeping, worker


@on_both_stores
async def test_a_cleaner_that_leaves_lets_go_of_its_lock(store, tmp_path):
    it, keeping, _ = await in_the_middle_of_it(store, tmp_path)
    assert b'"holder":null' not in (await store.get("locks/retention")).data
    await it.leave()
    assert keeping.cancelled()
    assert b'"holder":null' in (await store.get("locks/retention")).data


@here
async def test_a_cleaner_that_leaves_does_not_wait_for_a_store_that_hangs(store, tmp_path):
    it, keeping, worker = await in_the_middle_of_it(store, tmp_path)
    worker.store.freeze()
    await asyncio.wait_for(it.leave(), PATIENCE)
    assert not keeping.done()
    worker.store.thaw()
    await asyncio.wait([keeping])


@here
async def test_a_worker_that_is_told_never_to_clean_asks_nothing(store, tmp_path):
    worker = cleaner(store, tmp_path, clean_seconds=0)
    await Cleaner(worker).keep()
    assert not worker.store.calls


# ---- what a bucket can do by itself


def test_no_rule_of_a_bucket_reaches_what_only_records_can_tell_of(tmp_path):
    rules = lifecycle_rules(cleaner(_Nowhere(), tmp_path, prefix="team/a").settings)["Rules"]
    expiring = [rule["Filter"]["Prefix"] for rule in rules if "Expiration" in rule]
    assert sorted(expiring) == ["team/a/locks/check-", "team/a/locks/probe-", "team/a/workers/"]
    (uploads,) = [rule for rule in rules if "AbortIncompleteMultipartUpload" in rule]
    assert uploads["Filter"] == {"Prefix": "team/a/"}
