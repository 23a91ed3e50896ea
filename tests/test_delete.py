"""Removing a process, an input folder, one file: exactly that, for everybody, even if cut short."""

import asyncio

import pytest

from records.index import index_key
from records.keys import cancel_key, record_key
from tests import servers
from tests.crowd import on_every_store
from tests.test_complete import in_manifest
from tests.test_download import fetched
from tests.test_upload import send_chunks


async def deleted(worker, **what):
    """With the confirmation that it takes."""
    confirm = what.get("path") or what.get("folder") or what.get("process_id")
    return await worker("delete", confirm=confirm, **what)


async def shown_keys(store):
    """All keys but those that only say how old something is, see retention."""
    return [key for key in await servers.keys_of(store) if not key.startswith("ages/")]


# ---- a process


@on_every_store
async def test_a_deleted_process_leaves_nothing_and_touches_no_other(crowd):
    """Not even one whose id begins with its own. Trap 23."""
    worker = crowd.worker()
    for name in ("p", "p1", "p-2"):
        await worker.start(name, artifacts=2, steps=2, checkpoint_every=1)
    mine = ("processes/p/attempts/", "processes/p/cancel")
    others = [
        key
        for key in await servers.keys_of(crowd.store)
        if not key.startswith(mine) and "~p~" not in key
    ]
    reply = await deleted(worker, process_id="p")
    assert reply["process_id"] == "p"
    assert reply["deleted"]["objects"] >= 4
    assert reply["deleted"]["bytes"] > 32
    assert await shown_keys(crowd.store) == others


@on_every_store
async def test_a_deleted_process_is_not_found_by_anybody(crowd, monkeypatch):
    """A worker that knew its end looks again after a while; here at once."""
    monkeypatch.setattr("processes.lookup.FINAL_SECONDS", 0)
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p", artifacts=1)
    await other("process_status", process_id="p")
    await deleted(owner, process_id="p")
    for worker in (owner, other):
        assert (await worker("process_status", process_id="p"))["status"] == "not_found"
        assert (await worker("download", process_id="p"))["error"]["code"] == "unknown_process"
        assert (await worker("processes"))["processes"] == []


async def test_a_process_that_has_not_ended_is_not_deleted(crowd):
    owner, other = crowd.worker(), crowd.worker()
    running = await owner.running("p")
    for worker in (owner, other):
        assert (await deleted(worker, process_id="p"))["error"]["code"] == "process_active"
    assert (await owner("cancel", process_id="p"))["status"] == "cancelled"
    await running


async def test_a_deletion_and_a_resumption_cannot_both_succeed(crowd):
    """Whoever writes the record first."""
    one, other = crowd.worker(), crowd.worker()
    await one.start("p", fail_at=1)
    pause = other.store.pause_before("replace", "record.json")
    deleting = asyncio.create_task(deleted(other, process_id="p"))
    await pause.reached.wait()
    assert (await one.start("p", fail_at=1))["attempt"] == 2
    pause.go.set()
    assert (await deleting)["error"]["code"] == "process_active"
    assert (await crowd.record("p")).attempt == 2


@pytest.mark.parametrize("nth", [1, 2])
async def test_a_deletion_that_was_cut_short_is_finished_by_the_next(crowd, nth):
    """From its first write on there is no such process; what is left is removed by whoever asks."""
    one, other = crowd.worker(), crowd.worker()
    await one.start("p", artifacts=2)
    one.store.fail("delete", nth=nth)
    assert (await deleted(one, process_id="p"))["error"]["code"] == "storage_unavailable"
    assert (await other("process_status", process_id="p"))["status"] == "not_found"
    assert "deleted" in await deleted(other, process_id="p")
    assert await shown_keys(crowd.store) == [record_key("p")]


async def test_what_stays_of_a_deleted_process_tells_nothing_of_it(crowd):
    worker = crowd.worker()
    await worker("start", kind="sleep", process_id="p", labels={"user": "somebody"})
    await deleted(worker, process_id="p")
    left = await crowd.record("p")
    assert left.deleted
    assert (left.params, left.labels, left.result, left.history) == ({}, {}, None, ())


async def test_the_id_of_a_deleted_process_can_be_used_again(crowd):
    """Its attempts count on: a slow hand that still removes the old files touches no new one."""
    worker = crowd.worker()
    await worker.start("p", artifacts=3)
    await deleted(worker, process_id="p")
    reply = await worker.start("p", artifacts=1)
    assert (reply["status"], reply["attempt"], len(reply["files"])) == ("completed", 2, 1)


async def test_a_slow_deletion_does_not_touch_the_process_that_has_the_id_next(crowd):
    slow, worker = crowd.worker(), crowd.worker()
    await worker.start("p", artifacts=2)
    pause = slow.store.pause_before("list")
    deleting = asyncio.create_task(deleted(slow, process_id="p"))
    await pause.reached.wait()
    assert (await worker.start("p", artifacts=1))["status"] == "completed"
    pause.go.set()
    assert "error" not in await deleting
    assert (await worker("process_status", process_id="p"))["status"] == "completed"
    page = await crowd.worker()("download", process_id="p")
    assert [len(fetched(file["url"])) for file in page["files"]] == [16]


async def test_a_deleted_process_is_no_reason_to_wait_for_a_slot(crowd):
    worker = crowd.worker(slots=1)
    await worker.start("p")
    await deleted(worker, process_id="p")
    running = await worker.running("q")
    reply = await worker("start", kind="sleep", process_id="p", on_busy="reject")
    assert reply["error"]["code"] == "worker_busy"
    assert (await crowd.record("p")).deleted
    await worker("cancel", process_id="q")
    await running


async def test_two_starts_of_a_deleted_id_run_it_once(crowd):
    one, other = crowd.worker(), crowd.worker()
    await one.start("p")
    await deleted(one, process_id="p")
    replies = await asyncio.gather(one.start("p", steps=3), other.start("p", steps=3))
    assert [reply["attempt"] for reply in replies] == [2, 2]


async def test_a_cancel_that_was_meant_for_a_deleted_process_stops_no_other(crowd):
    """Its link works for a day."""
    worker = crowd.worker()
    await worker.start("p")
    await deleted(worker, process_id="p")
    await crowd.store.put(cancel_key("p"), b"")
    assert (await worker.start("p"))["status"] == "completed"


async def test_who_follows_a_process_that_is_deleted_does_not_run_it_again(crowd):
    owner, follower = crowd.worker(), crowd.worker()
    await owner.running("p")
    look_again = follower.store.pause_before("get", "record.json", nth=2)
    following = asyncio.create_task(follower.start("p", seconds=60, steps=600))
    await look_again.reached.wait()
    await owner("cancel", process_id="p")
    await deleted(owner, process_id="p")
    look_again.go.set()
    assert (await following)["error"]["code"] == "unknown_process"
    assert (await crowd.record("p")).deleted


async def test_a_cancel_means_the_process_that_has_the_id_now(crowd):
    """However fresh this worker's copy is of the end of the one before."""
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p")
    await other("process_status", process_id="p")
    await deleted(owner, process_id="p")
    running = await owner.running("p")
    assert (await other("cancel", process_id="p"))["status"] == "cancelled"
    await running


async def test_a_cancel_that_waits_while_the_process_is_deleted_says_that_it_is_gone(crowd):
    owner, other = crowd.worker(), crowd.worker()
    running = await owner.running("p")
    pause = other.store.pause_before("get", "record.json", nth=2)
    waiting = asyncio.create_task(other("cancel", process_id="p"))
    await pause.reached.wait()
    assert (await running)["status"] == "cancelled"
    await deleted(owner, process_id="p")
    pause.go.set()
    assert (await waiting)["error"]["code"] == "unknown_process"


async def test_files_of_a_deleted_process_are_not_those_of_its_namesake(crowd, monkeypatch):
    """Also for a worker that remembers the old manifest."""
    monkeypatch.setattr("processes.lookup.FINAL_SECONDS", 0)
    worker, other = crowd.worker(), crowd.worker()
    for count in (150, 120):
        await worker.start("p", artifacts=count)
        reply = await other("download", process_id="p")
        assert len(reply["files"]) == count
        await deleted(worker, process_id="p")


async def test_a_row_that_a_dead_worker_left_goes_too(crowd):
    worker = crowd.worker()
    await worker.start("p")
    await crowd.store.put(index_key(await crowd.record("p"), "running"), b"")
    await deleted(worker, process_id="p")
    assert await servers.keys_of(crowd.store, "index/") == []


async def test_a_row_that_came_after_the_deletion_is_removed_when_a_worker_starts(crowd):
    worker = crowd.worker()
    await worker.start("p")
    row = index_key(await crowd.record("p"))
    await deleted(worker, process_id="p")
    await crowd.store.put(row, b"")  # whoever repairs rows read the record before it was deleted
    await crowd.worker().manager.recover()
    assert (await worker("processes"))["processes"] == []


# ---- an input folder


@on_every_store
async def test_a_folder_is_deleted_and_no_other_one(crowd):
    store, worker = crowd.store, crowd.worker()
    for key in ("inputs/f/a", "inputs/f/b/c", "inputs/foo/a", "inputs/f-1/a"):
        await store.put(key, b"12")
    await worker("upload", folder="f", complete=True)
    manifest = (await store.stat("inputs/f/.worker/manifest.json")).size
    reply = await deleted(worker, folder="f")
    assert reply == {"folder": "f", "deleted": {"objects": 3, "bytes": 4 + manifest}}
    assert await shown_keys(store) == ["inputs/f-1/a", "inputs/foo/a"]


async def test_a_folder_whose_deletion_was_cut_short_is_not_complete_any_more(crowd):
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a", b"12")
    await worker("upload", folder="f", complete=True)
    worker.store.fail("delete", nth=2)
    assert (await deleted(worker, folder="f"))["error"]["code"] == "storage_unavailable"
    assert not (await worker("list_files", folder="f"))["complete"]
    assert (await deleted(worker, folder="f"))["deleted"]["objects"] == 1


@on_every_store
async def test_one_file_is_deleted_and_the_manifest_says_so(crowd):
    store, worker = crowd.store, crowd.worker()
    for name in ("a", "b"):
        await store.put(f"inputs/f/{name}", name.encode())
    await worker("upload", folder="f", complete=True)
    reply = await deleted(worker, folder="f", path="a")
    assert reply["deleted"] == {"objects": 1, "bytes": 1}
    folder = await worker("list_files", folder="f")
    assert [file["path"] for file in folder["files"]] == ["b"]
    assert folder["complete"]
    assert [*await in_manifest(store)] == ["b"]


@on_every_store
async def test_files_are_deleted_at_the_same_time_and_the_manifest_lists_none_of_them(crowd):
    names = ["a", "b", "c", "d"]
    for name in names:
        await crowd.store.put(f"inputs/f/{name}", b"")
    await crowd.worker()("upload", folder="f", complete=True)
    replies = await asyncio.gather(
        *(deleted(crowd.worker(), folder="f", path=name) for name in names[:3])
    )
    assert [reply["deleted"]["objects"] for reply in replies] == [1, 1, 1]
    assert [*await in_manifest(crowd.store)] == ["d"]


async def test_a_complete_that_saw_a_file_before_it_was_deleted_looks_again(crowd):
    worker, slow = crowd.worker(), crowd.worker()
    for name in ("a", "b"):
        await crowd.store.put(f"inputs/f/{name}", b"")
    await worker("upload", folder="f", complete=True)
    pause = slow.store.pause_before("replace", "manifest.json")
    completing = asyncio.create_task(slow("upload", folder="f", complete=True))
    await pause.reached.wait()
    await deleted(worker, folder="f", path="a")
    pause.go.set()
    assert (await completing)["count"] == 1
    assert [*await in_manifest(crowd.store)] == ["b"]


async def test_a_deletion_of_a_file_that_was_cut_short_is_finished_by_the_next(crowd):
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a", b"")
    await worker("upload", folder="f", complete=True)
    worker.store.fail("replace", "manifest.json")
    reply = await deleted(worker, folder="f", path="a")
    assert reply["error"]["code"] == "storage_unavailable"
    assert "deleted" in await deleted(worker, folder="f", path="a")
    assert await in_manifest(crowd.store) == {}


async def test_a_file_of_which_only_chunks_came_can_be_deleted(crowd):
    worker = crowd.worker()
    await send_chunks(worker, "f", "a", b"12345", size=2)
    reply = await deleted(worker, folder="f", path="a")
    assert reply["deleted"] == {"objects": 3, "bytes": 5}
    assert await shown_keys(crowd.store) == []


async def test_a_folder_of_which_only_the_manifest_is_left_is_a_folder(crowd):
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a", b"")
    await worker("upload", folder="f", complete=True)
    await deleted(worker, folder="f", path="a")
    assert (await deleted(worker, folder="f"))["deleted"]["objects"] == 1
    assert await shown_keys(crowd.store) == []


@pytest.mark.parametrize("what", [{"folder": "f"}, {"folder": "f", "path": "a"}])
async def test_what_is_not_there_cannot_be_deleted(crowd, what):
    assert (await deleted(crowd.worker(), **what))["error"]["code"] == "unknown_folder"


# ---- asking


@pytest.mark.parametrize(
    "request_",
    [
        {"process_id": "p"},
        {"process_id": "p", "confirm": "q"},
        {"process_id": "p", "confirm": ""},
        {"folder": "f", "confirm": "p"},
        {"folder": "f", "path": "a", "confirm": "f"},
        {"process_id": "p", "path": "a", "confirm": "p"},
        {"process_id": "p", "folder": "f", "confirm": "p"},
        {"confirm": ""},
        {"folder": "f", "path": "../g/a", "confirm": "../g/a"},
        {"folder": "f", "path": ".worker/manifest.json", "confirm": ".worker/manifest.json"},
    ],
)
async def test_nothing_is_deleted_that_was_not_named_twice(crowd, request_):
    worker = crowd.worker()
    await worker.start("p")
    await crowd.store.put("inputs/f/a", b"")
    await worker("upload", folder="f", complete=True)
    before = await servers.keys_of(crowd.store)
    code = (await worker("delete", **request_))["error"]["code"]
    assert code in ("invalid_request", "invalid_key")
    assert await servers.keys_of(crowd.store) == before
