"""The sweep: what no row leads to is found, too, some of it in each run, all of it in turn."""

import asyncio
from pathlib import Path

import pytest

from records.index import index_key, read_rows
from records.keys import cancel_key, record_key
from records.record import Status, Writer
from retention.clean_run import AT_ONCE, MOST, CleanReport, CleanRun
from retention.last_clean import LastClean, SweepPlace
from retention.sweep import Names, in_turn, pace
from tests.aged import (
    LATER_DAYS,
    cleaned,
    cleaner,
    days_ago,
    ended,
    seed,
)
from tests.servers import keys_of, on_both_stores, on_local
from utils import new_nonce


@on_local
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


@on_local
async def test_what_has_no_record_since_a_moment_may_be_a_process_that_begins(store, tmp_path):
    await store.put(cancel_key("new"), b"{}")
    assert await cleaned(cleaner(store, tmp_path, later=0)) == {}
    assert await keys_of(store, "processes/") == [cancel_key("new")]


@on_local
async def test_the_sweep_comes_to_everything_in_turn_at_a_constant_cost(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr("retention.sweep.SWEPT", 4)
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
    assert pace(10**12) == MOST
    assert runs_of_a_round(7200) == 72
    assert 24 < runs_of_a_round(10_000_000) / 24 < 26  # days


class _Sweep:
    """Runs of a sweep that only writes down what it is shown."""

    def __init__(self, worker, place):
        self.last, self.shown = LastClean(worker.store), []
        self._worker, self._place = worker, place

    @property
    def place(self):
        return self.last.place("x")

    async def go(self, least):
        """How many it is shown."""
        before = len(self.shown)
        if self._place:
            await self.last.write(x=self._place)
            self._place = None
        run = CleanRun(self._worker, CleanReport(), self.last, 0)
        await in_turn(run, "x", self._names, self._look_at, least=least)
        return len(self.shown) - before

    async def _names(self, after, limit):
        page = await self._worker.store.list_folders("processes/", start_after=after, limit=limit)
        return Names({name: name for name in page.names}, page.next is not None)

    async def _look_at(self, name):
        self.shown.append(name)


def put_folders(place, there):
    """So many at once, in the folder of a `LocalStore`. Their names."""
    names = [f"p{number:05d}" for number in range(there)]
    for name in names:
        folder = Path(place["root"], "processes", name)
        folder.mkdir(parents=True)
        (folder / "x").touch()
    return names


@on_local
async def test_a_round_grows_and_the_next_one_begins_small_again(store, place, tmp_path):
    names = put_folders(place, 900)
    sweep = _Sweep(cleaner(store, tmp_path), SweepPlace(after=names[199], seen=14_400))
    # A 72nd of 14,400, of 14,600, of 14,802, and what is left.
    assert [await sweep.go(100) for _ in range(4)] == [200, 202, 205, 93]
    assert sweep.shown == names[200:]
    assert sweep.place == SweepPlace()
    assert await sweep.go(100) == 100
    assert sweep.place == SweepPlace(after=names[99], seen=100)


@on_local
async def test_a_large_run_comes_by_the_page(store, place, tmp_path):
    names = put_folders(place, 1500)
    worker = cleaner(store, tmp_path)
    sweep = _Sweep(worker, SweepPlace(after=names[0], seen=72 * 1100))
    assert await sweep.go(100) == 1100
    assert sweep.shown == names[1:1101]
    assert len(worker.store.asked("list_folders")) == 2


@on_local
@pytest.mark.parametrize(
    "damaged",
    [
        b"what is this",
        b"[]",
        b'{"places": {"processes": null}}',
        b'{"places": {"processes": {"after": "z", "seen": -1}}}',
        b'{"places": {"processes": {"after": "z", "seen": ' + b"9" * 5000 + b"}}}",
        b'{"places": {"processes": {"after": "z/../z"}}}',
    ],
)
async def test_a_damaged_place_has_the_sweep_begin_anew(store, tmp_path, damaged):
    await store.put(cancel_key("p"), b"{}")
    await store.put("locks/retention", damaged)
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 1}


async def place_in(store):
    last = LastClean(store)
    await last.look()
    return last.place("processes")


@on_local
async def test_the_next_cleaner_goes_on_where_the_last_one_came_to(store, place, tmp_path):
    names = put_folders(place, 400)
    await LastClean(store).write(processes=SweepPlace(after=names[49], seen=10_800))
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 150}
    assert await place_in(store) == SweepPlace(after=names[199], seen=10_950)
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 152}
    assert await keys_of(store, "processes/") == [
        f"processes/{name}/x" for name in names[:50] + names[352:]
    ]


@on_local
async def test_a_sweep_that_is_broken_off_has_lost_its_page_and_no_more(
    store, place, tmp_path, monkeypatch
):
    monkeypatch.setattr("retention.sweep.MAX_PAGE", AT_ONCE)
    names = put_folders(place, 3 * AT_ONCE)
    worker = cleaner(store, tmp_path)
    pause = worker.store.pause_before("get", record_key(names[2 * AT_ONCE]))
    cleaning = asyncio.create_task(cleaned(worker))
    await pause.reached.wait()
    worker.store.away = True
    cleaning.cancel()
    await asyncio.wait([cleaning])
    assert await place_in(store) == SweepPlace(after=names[2 * AT_ONCE - 1], seen=2 * AT_ONCE)


@on_local
async def test_of_two_sweeps_at_once_one_ends_with_its_page(store, place, tmp_path, monkeypatch):
    monkeypatch.setattr("retention.sweep.MAX_PAGE", 2)
    put_folders(place, 10)
    worker = cleaner(store, tmp_path, input_days=None)
    pause = worker.store.pause_before("replace", "locks/retention")
    cleaning = asyncio.create_task(cleaned(worker))
    await pause.reached.wait()
    assert await cleaned(cleaner(store, tmp_path)) == {"orphans": 8}
    pause.go.set()
    assert await cleaning == {"orphans": 2}


@on_local
async def test_a_process_that_its_worker_never_ended_goes_without_a_row(store, tmp_path):
    """Its owner was killed before it showed a row, and the process was not delivered again."""
    await store.put(record_key("lost"), ended("lost", 60, status=Status.RUNNING).encode())
    assert await cleaned(cleaner(store, tmp_path)) == {"processes": 1}


@on_local
@pytest.mark.parametrize(("days", "removed"), [(1.5, {}), (3, {"processes": 1})])
async def test_a_deletion_that_was_cut_short_long_ago_goes_on(store, tmp_path, days, removed):
    """Its rows went before the one that leads to the erased record came."""
    erased = ended("p", 90).erased(Writer(worker_id="w", nonce=new_nonce()))
    await store.put(record_key("p"), erased.encode())
    await store.put("processes/p/attempts/1/artifacts/0", b"1")
    assert await cleaned(cleaner(store, tmp_path, later=days)) == removed
    assert ("processes/p/attempts/1/artifacts/0" in await keys_of(store)) == (not removed)


@on_local
async def test_a_live_process_is_left_to_its_owner_by_the_sweep(store, tmp_path):
    record = ended("p", LATER_DAYS, status=Status.RUNNING)  # written a moment ago
    await store.put(record_key("p"), record.encode())
    await cleaned(cleaner(store, tmp_path, later=0))
    assert await keys_of(store, "index/") == []


@on_local
async def test_two_rows_of_one_process_are_shown_as_one_and_become_one(store, tmp_path):
    record = ended("p", 1)
    await seed(store, record)
    await store.put(index_key(record, Status.RUNNING), b"")
    rows, _ = await read_rows(store, limit=1000, cursor=None, status=None, kind=None)
    assert [row.status for row in rows] == [Status.COMPLETED]
    await cleaned(cleaner(store, tmp_path))
    assert await keys_of(store, "index/") == [index_key(record)]


@on_local
async def test_what_workers_left_in_the_store_goes(store, tmp_path):
    for key in ("locks/check-1", "locks/probe-1/plain", "workers/w.json", "locks/other"):
        await store.put(key, b"1")
    assert await cleaned(cleaner(store, tmp_path, later=0.5)) == {}
    assert await cleaned(cleaner(store, tmp_path)) == {"workers' leftovers": 3}
    assert await keys_of(store) == ["locks/other", "locks/retention"]
