"""The list of processes: rows that follow the records, read a page at a time."""

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest

from records.index import (
    PREFIX,
    IndexEntry,
    index_key,
    leads_before,
    read_rows,
    repair,
    rows_there,
)
from records.record import Status, Writer, new_record
from storage import StorageUnavailable
from stores.local.store import LocalStore
from tests.crowd import on_every_store
from tests.faulty_store import FaultyStore

EPOCH = datetime(2026, 8, 1, tzinfo=UTC)


def record_of(process_id, *, minute=0, kind="sleep"):
    return new_record(
        process_id=process_id,
        kind=kind,
        params={},
        request_hash="h",
        writer=Writer(worker_id="w", nonce="1"),
        now=EPOCH + timedelta(minutes=minute),
    )


async def rows_of(store):
    """The keys that there are, whatever they mean."""
    return [row.key for row in (await store.list("index/")).objects]


async def listed(store, **wanted):
    """Everything, page by page: (id, status), and how many requests it took."""
    store = FaultyStore(store)
    rows, cursor = [], None
    wanted = {"limit": 200, "status": None, "kind": None} | wanted
    while True:
        page, cursor = await read_rows(store, cursor=cursor, **wanted)
        rows += [(row.process_id, row.status.value) for row in page]
        if cursor is None:
            return rows, len(store.asked("list"))
        assert len(store.calls) == len(store.asked("list")), "nothing but LIST"


# ---- rows follow records


async def test_a_process_has_one_row_which_says_what_its_record_says(crowd):
    worker = crowd.worker()
    await worker.start("good")
    await worker.start("bad", fail_at=1)
    keys = await rows_of(crowd.store)
    assert sorted(key.split("~", 1)[1] for key in keys) == [
        "bad~sleep~failed",
        "good~sleep~completed",
    ]


async def test_what_is_listed_was_stored_before(crowd):
    worker = crowd.worker()
    await worker.start("p")
    order = [call for call in worker.store.calls if "record.json" in call.key or "~" in call.key]
    stored = []
    for call in order:
        if "record.json" in call.key and call.data:
            stored.append(call.record.status.value)
        elif call.name == "put":
            assert call.key.rpartition("~")[2] in stored


async def test_a_retried_process_has_one_row(crowd):
    params = {"steps": 3, "fail_at": 3}
    await crowd.worker().start("p", **params)
    await crowd.worker().start("p", **params)
    assert len(await rows_of(crowd.store)) == 1


async def test_a_row_that_could_not_be_removed_is_removed_with_the_next(crowd):
    store = FaultyStore(crowd.store)
    entry, record = IndexEntry(store), record_of("p")
    await entry.show(record)
    store.fail("delete")
    with pytest.raises(StorageUnavailable):
        await entry.show(record.running(EPOCH))
    await entry.show(record.running(EPOCH).completed(EPOCH, None))
    assert await rows_of(crowd.store) == [index_key(record, Status.COMPLETED)]


async def test_a_row_whose_writing_was_broken_off_is_removed_with_the_next(crowd):
    store = FaultyStore(crowd.store)
    entry, record = IndexEntry(store), record_of("p")
    await entry.show(record)
    pause = store.pause_after("put", "~running")
    broken_off = asyncio.create_task(entry.show(record.running(EPOCH)))
    await pause.reached.wait()
    broken_off.cancel()
    await asyncio.wait([broken_off])
    await entry.show(record.running(EPOCH).completed(EPOCH, None))
    assert await rows_of(crowd.store) == [index_key(record, Status.COMPLETED)]


async def test_what_has_not_changed_costs_no_request(crowd):
    store = FaultyStore(crowd.store)
    entry, record = IndexEntry(store), record_of("p")
    await entry.show(record)
    store.forget_calls()
    await entry.show(record.written(EPOCH))
    assert not store.calls


# ---- a worker that dies between the record and its row


@pytest.mark.parametrize("survivor", ["delivery", "recovery"])
async def test_a_row_left_behind_is_mended(crowd, survivor):
    worker, other = crowd.worker(), crowd.worker()
    pause = worker.store.pause_before("put", "~completed")  # never let on
    worker.starts("p")
    await pause.reached.wait()
    await crowd.stored("p", "completed")
    await worker.die()
    assert (await listed(crowd.store))[0] != [("p", "completed")]
    if survivor == "delivery":
        await other.start("p")
    else:
        await other.manager.recover()
    assert [key.rpartition("~")[2] for key in await rows_of(crowd.store)] == ["completed"]


async def test_two_rows_of_one_process_are_shown_as_the_later_one(crowd):
    record = record_of("p")
    for status in (Status.QUEUED, Status.RUNNING, Status.COMPLETED):
        await crowd.store.put(index_key(record, status), b"")
    assert (await listed(crowd.store))[0] == [("p", "completed")]
    assert (await listed(crowd.store, status=Status.RUNNING))[0] == []


async def test_repair_leaves_the_right_row_alone(crowd):
    record = record_of("p")
    for status in Status:
        await crowd.store.put(index_key(record, status), b"")
    await repair(crowd.store, record.running(EPOCH))
    assert await rows_of(crowd.store) == [index_key(record, Status.RUNNING)]


# ---- pages


@on_every_store
async def test_more_than_a_thousand_processes_are_listed_newest_first(crowd):
    """Traps 9 and 10: 1200 processes, pages of 200, six requests and no read of a record."""
    semaphore = asyncio.Semaphore(32)

    async def seed(number):
        async with semaphore:
            record = record_of(f"p{number:04d}", minute=number)
            await crowd.store.put(index_key(record, Status.COMPLETED), b"")

    await asyncio.gather(*(seed(number) for number in range(1200)))
    rows, requests = await listed(crowd.store)
    assert [process_id for process_id, _ in rows] == [f"p{n:04d}" for n in reversed(range(1200))]
    assert requests == 6
    newest, _ = await read_rows(crowd.store, limit=1, cursor=None, status=None, kind=None)
    assert newest[0].process_id == "p1199"


@pytest.mark.parametrize("page", range(1, 13))
async def test_wherever_a_page_ends_each_process_is_shown_once(crowd, monkeypatch, page):
    """Every process has two rows, and the store's own page ends between them, or not."""
    for number in range(6):
        record = record_of(f"p{number}", minute=number)
        await crowd.store.put(index_key(record, Status.RUNNING), b"")
        await crowd.store.put(index_key(record, Status.COMPLETED), b"")
    monkeypatch.setattr("records.index.MAX_PAGE", max(page, 3))
    for limit in (1, 2, 5, 200):
        rows, _ = await listed(crowd.store, limit=limit)
        assert rows == [(f"p{number}", "completed") for number in reversed(range(6))]


async def test_filters_go_on_to_the_next_page(crowd, monkeypatch):
    monkeypatch.setattr("records.index.MAX_PAGE", 4)
    for number in range(20):
        status = Status.FAILED if number == 3 else Status.COMPLETED
        kind = "train" if number == 4 else "sleep"
        record = record_of(f"p{number}", minute=number, kind=kind)
        await crowd.store.put(index_key(record, status), b"")
    assert (await listed(crowd.store, status=Status.FAILED))[0] == [("p3", "failed")]
    assert (await listed(crowd.store, kind="train"))[0] == [("p4", "completed")]


async def test_what_somebody_else_put_there_is_passed_over(crowd, monkeypatch):
    """A whole page of it, too."""
    monkeypatch.setattr("records.index.MAX_PAGE", 4)
    for number in range(9):
        await crowd.store.put(f"index/0-not-ours-{number}", b"")
    await crowd.store.put(index_key(record_of("p")), b"")
    assert (await listed(crowd.store))[0] == [("p", "queued")]


async def test_ids_that_begin_alike_are_not_mixed_up(crowd):
    for process_id in ("a", "a-b", "a.b", "ab", "A"):
        await crowd.store.put(index_key(record_of(process_id)), b"")
    rows, _ = await listed(crowd.store)
    assert sorted(process_id for process_id, _ in rows) == ["A", "a", "a-b", "a.b", "ab"]


async def test_a_process_started_between_two_pages_moves_no_row(crowd):
    for number in range(4):
        await crowd.store.put(index_key(record_of(f"p{number}", minute=number)), b"")
    page, cursor = await read_rows(crowd.store, limit=2, cursor=None, status=None, kind=None)
    await crowd.store.put(index_key(record_of("new", minute=9)), b"")
    rest, _ = await read_rows(crowd.store, limit=2, cursor=cursor, status=None, kind=None)
    assert [row.process_id for row in (*page, *rest)] == ["p3", "p2", "p1", "p0"]


@on_every_store
async def test_one_request_lists_up_to_a_thousand_processes(crowd):
    turn = asyncio.Semaphore(32)

    async def seed(number):
        async with turn:
            await crowd.store.put(index_key(record_of(f"p{number}", minute=number)), b"")

    await asyncio.gather(*(seed(number) for number in range(1010)))
    worker = crowd.worker()
    first = await worker("processes", limit=1000)
    assert [call.name for call in worker.store.calls] == ["list"]
    assert len(first["processes"]) > 900  # a store may give less than it could
    rest = await worker("processes", limit=1000, cursor=first["next_cursor"])
    ids = [row["process_id"] for row in first["processes"] + rest["processes"]]
    assert ids == [f"p{number}" for number in reversed(range(1010))]
    assert (await worker("processes", limit=1001))["error"]["code"] == "invalid_request"


async def test_a_page_asks_for_hardly_more_rows_than_it_shows(tmp_path, monkeypatch):
    """A bucket takes its time for rows; a filter may need them all."""
    store, asked = LocalStore(tmp_path), []
    real = store.list

    async def note(prefix, *, limit, **options):
        asked.append(limit)
        return await real(prefix, limit=limit, **options)

    monkeypatch.setattr(store, "list", note)
    for kind in (None, "sleep"):
        await read_rows(store, limit=200, cursor=None, status=None, kind=kind)
    assert asked == [250, 1000]


async def test_where_many_have_two_rows_pages_are_short_and_show_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr("records.index.SPARE_ROWS", 1)
    store = LocalStore(tmp_path)
    for number in range(9):
        record = record_of(f"p{number}", minute=number)
        await store.put(index_key(record), b"")
        await store.put(index_key(record, Status.RUNNING), b"")
    rows, requests = await listed(store, limit=4)
    assert rows == [(f"p{number}", "running") for number in reversed(range(9))]
    assert requests == 5


# ---- slices


def test_a_key_has_its_slice_and_sorts_as_its_moment_does():
    key = index_key(record_of("p"))
    assert key == "index/8214457/599999~p~sleep~queued"
    keys = [index_key(record_of("p", minute=minute)) for minute in range(100)]
    assert keys == sorted(keys, reverse=True)
    assert len({key.split("/")[1] for key in keys}) in (6, 7)


async def test_a_list_in_a_folder_reads_the_slices_it_needs(tmp_path, monkeypatch):
    """Wherever it begins, and from the end."""
    store = LocalStore(tmp_path)
    for number in range(300):  # 18 slices
        await store.put(index_key(record_of(f"p{number:03d}", minute=number)), b"")
    read = []
    real = os.listdir
    monkeypatch.setattr("os.listdir", lambda path: read.append(path) or real(path))
    monkeypatch.setattr("records.index.SPARE_ROWS", 0)
    cursor = None
    for page in range(29):
        rows, cursor = await read_rows(store, limit=10, cursor=cursor, status=None, kind=None)
        assert len(rows) > 8, page
        assert len(read) <= 3, page  # `index/` and one slice, or two
        read.clear()
    before = [lead async for lead in leads_before(store, PREFIX, EPOCH + timedelta(minutes=9))]
    assert [lead.process_id for lead in before] == [f"p00{n}" for n in range(9, -1, -1)]
    assert len(read) <= 3
    read.clear()
    record = record_of("p150", minute=150)
    assert await rows_there(store, record) == [index_key(record)]
    assert len(read) <= 4  # its slice; `index/` and what comes after the slice
    await store.close()


async def test_a_slice_that_empties_while_rows_come_into_it_loses_none(tmp_path):
    """Its folder goes with the last row, and comes again; by two workers, as they share no lock."""
    stores = [LocalStore(tmp_path), LocalStore(tmp_path)]

    async def begin_and_go(number):
        record, store = record_of(f"p{number}"), stores[number % 2]
        for _ in range(20):
            entry = IndexEntry(store)
            await entry.show(record)
            await entry.show(record.running(EPOCH))
            assert await rows_there(store, record) == [index_key(record, Status.RUNNING)]
            await store.delete([index_key(record, Status.RUNNING)])

    await asyncio.gather(*(begin_and_go(number) for number in range(6)))
    assert not (tmp_path / "index").exists()
    for store in stores:
        await store.close()


@pytest.mark.parametrize(
    "cursor", ["8214457", "8214457/", "/", "~", "../x", "zzz", "8214457/~", "0"]
)
async def test_any_cursor_is_a_place_in_the_list(crowd, cursor):
    for number in range(3):
        await crowd.store.put(index_key(record_of(f"p{number}", minute=number)), b"")
    reply = await crowd.worker()("processes", cursor=cursor)
    assert len(reply["processes"]) in (0, 3)
