"""A folder is completed: what was announced is there, and the manifest lists what is there."""

import asyncio
import threading

import httpx
import pytest

from inputs.folder_files import OWN, FolderManifest, chunks_prefix
from tests.crowd import on_every_store
from tests.test_upload import (
    PART,
    announced,
    complete,
    listed,
    on_a_bucket,
    send_chunks,
    sha256,
)


async def in_manifest(store, folder="f"):
    """Path and sha256 of each file that it lists."""
    stored = await store.get(f"inputs/{folder}/{OWN}/manifest.json")
    manifest = FolderManifest.model_validate_json(stored.data)
    return {file.path: file.sha256 for file in manifest.files}


async def parts_sent(worker, data):
    """A file `a.bin` announced and sent in parts, as `complete` takes it."""
    [row] = (await worker("upload", folder="f", files=announced(a=data), overwrite=True))["files"]
    async with httpx.AsyncClient() as client:
        for number, url in enumerate(row["urls"]):
            part = data[number * row["part_bytes"] :][: row["part_bytes"]]
            assert (await client.put(url, content=part)).is_success
    return [{**announced(a=data)[0], "upload_id": row["upload_id"]}]


@on_every_store
@pytest.mark.parametrize(
    ("file", "code"),
    [
        ({"path": "a.bin", "size": 6}, "upload_mismatch"),
        ({"path": "a.bin", "size": 5, "sha256": sha256(b"other")}, "upload_mismatch"),
        ({"path": "missing.bin", "size": 5}, "upload_incomplete"),
    ],
)
async def test_what_is_not_there_as_announced_completes_no_folder(crowd, file, code):
    """And nothing that is there is touched."""
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"12345")
    reply = await complete(worker, "f", [file])
    assert reply["error"]["code"] == code
    assert not (await listed(worker, "f"))["complete"]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"12345"


async def test_a_folder_that_nobody_brought_cannot_be_completed(crowd):
    assert (await complete(crowd.worker(), "f"))["error"]["code"] == "unknown_folder"


async def test_completing_again_keeps_the_hashes_of_files_that_are_unchanged(crowd):
    worker, folders = crowd.worker(), "inputs/f/"
    await crowd.store.put(f"{folders}a.bin", b"first")
    await complete(worker, "f", announced(a=b"first"))
    await crowd.store.put(f"{folders}b.bin", b"second")
    await complete(worker, "f")
    manifest = (await crowd.store.get(f"{folders}{OWN}/manifest.json")).data
    assert sha256(b"first").encode() in manifest
    assert sha256(b"second").encode() not in manifest  # nobody said what it is


async def test_a_file_that_is_known_is_not_read_again(crowd):
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"first")
    for _ in range(2):
        assert (await complete(worker, "f", announced(a=b"first")))["complete"]
    assert len(worker.store.asked("get_range")) == 1
    await crowd.store.put("inputs/f/a.bin", b"other")
    reply = await complete(worker, "f", announced(a=b"first"))
    assert reply["error"]["code"] == "upload_mismatch"


async def test_a_manifest_is_read_and_written_off_the_event_loop(crowd, monkeypatch):
    """One of 10,000 files takes long enough to hold up every other request."""
    threads = []

    def in_thread(method):
        def call(*args):
            threads.append(threading.current_thread())
            return method(*args)

        return call

    for name in ("model_validate_json", "model_dump_json"):
        monkeypatch.setattr(FolderManifest, name, in_thread(getattr(FolderManifest, name)))
    await crowd.store.put("inputs/f/a.bin", b"first")
    for _ in range(2):
        assert (await complete(crowd.worker(), "f"))["complete"]
    assert threads
    assert threading.main_thread() not in threads


# ---- several at a time


@on_every_store
async def test_a_complete_that_takes_long_lists_what_came_meanwhile(crowd):
    slow, quick = crowd.worker(), crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"first")
    pause = slow.store.pause_before("get_range", "a.bin")
    completing = asyncio.create_task(complete(slow, "f", announced(a=b"first")))
    await pause.reached.wait()
    await crowd.store.put("inputs/f/b.bin", b"second")
    await complete(quick, "f", announced(b=b"second"))
    pause.go.set()
    assert (await completing)["count"] == 2
    assert await in_manifest(crowd.store) == {"a.bin": sha256(b"first"), "b.bin": sha256(b"second")}


@on_every_store
@pytest.mark.parametrize("first", [True, False])
async def test_a_manifest_is_never_written_over_one_that_it_does_not_know(crowd, first):
    """Neither the first one, nor a later one."""
    slow, quick = crowd.worker(), crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"first")
    if not first:
        await complete(quick, "f")
    pause = slow.store.pause_before("create" if first else "replace", "manifest.json")
    completing = asyncio.create_task(complete(slow, "f", announced(a=b"first")))
    await pause.reached.wait()
    await crowd.store.put("inputs/f/b.bin", b"second")
    await complete(quick, "f", announced(b=b"second"))
    pause.go.set()
    assert (await completing)["count"] == 2
    assert await in_manifest(crowd.store) == {"a.bin": sha256(b"first"), "b.bin": sha256(b"second")}


async def test_a_file_that_is_written_to_while_it_is_checked_is_not_what_was_checked(crowd):
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"first")
    pause = worker.store.pause_after("get_range", "a.bin")
    completing = asyncio.create_task(complete(worker, "f", announced(a=b"first")))
    await pause.reached.wait()
    await crowd.store.put("inputs/f/a.bin", b"other")
    pause.go.set()
    assert (await completing)["error"]["code"] == "upload_incomplete"
    assert not (await listed(worker, "f"))["complete"]


# ---- what is there is not replaced


async def test_chunks_of_a_file_that_is_there_already_are_dropped(crowd):
    """Whoever put it there in between was first."""
    worker = crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"12345")
    await crowd.store.put("inputs/f/a.bin", b"first")
    assert (await complete(worker, "f", [{"path": "a.bin", "size": 5}]))["complete"]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"first"
    assert (await crowd.store.list(chunks_prefix("f", "a.bin"))).objects == []


@pytest.mark.parametrize(
    ("there", "code"), [(b"longer", "upload_refused"), (b"other", "upload_mismatch")]
)
async def test_a_file_that_is_there_must_be_the_one_whose_chunks_came(crowd, there, code):
    worker = crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"12345")
    await crowd.store.put("inputs/f/a.bin", there)
    reply = await complete(worker, "f", announced(a=b"12345"))
    assert reply["error"]["code"] == code
    assert (await crowd.store.get("inputs/f/a.bin")).data == there


async def test_chunks_replace_a_file_that_is_to_be_overwritten(crowd):
    worker = crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"12345")
    await crowd.store.put("inputs/f/a.bin", b"first")
    assert (await complete(worker, "f", announced(a=b"12345"), overwrite=True))["complete"]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"12345"


@on_a_bucket
async def test_parts_do_not_replace_a_file_unless_they_are_told_to(crowd):
    worker = crowd.worker(single_put_bytes=PART)
    files = await parts_sent(worker, bytes(PART + 1))
    await crowd.store.put("inputs/f/a.bin", b"first")
    reply = await complete(worker, "f", files)
    assert reply["error"]["code"] == "upload_refused"
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"first"
    for _ in range(2):  # the second finds that it was done
        assert (await complete(worker, "f", files, overwrite=True))["total_bytes"] == PART + 1


# ---- limits, and what was left


@pytest.mark.parametrize(
    "limits", [{"max_upload_bytes": 5}, {"max_folder_bytes": 8}, {"max_folder_files": 1}]
)
async def test_what_exceeds_a_limit_is_not_completed(crowd, limits):
    """However it came there. Nothing is put together either."""
    await crowd.store.put("inputs/f/there", b"123")
    await send_chunks(crowd.worker(), "f", "a.bin", b"123456")
    reply = await complete(crowd.worker(**limits), "f", [{"path": "a.bin", "size": 6}])
    assert reply["error"]["code"] == "upload_refused"
    folder = await listed(crowd.worker(), "f")
    assert not folder["complete"]
    assert [file["path"] for file in folder["files"]] == ["there"]


async def test_chunks_that_were_not_announced_are_not_forgotten(crowd):
    worker = crowd.worker()
    for name in ("a", "b"):
        await send_chunks(worker, "f", name, b"abc")
    await crowd.store.put("inputs/f/there", b"123")
    error = (await complete(worker, "f"))["error"]
    assert error["code"] == "upload_incomplete"
    assert "chunks of 2 files" in error["message"]
