"""One zip of many processes, streamed from the store into the store. Writing it is a process."""

import asyncio
import io
import json
import subprocess
import sys
import zipfile

import pytest

from attempts.archive import READ_BYTES, ArchiveFailed, ArchiveStream, ZipEntry
from records.manifest import artifact_key
from tests.crowd import on_every_store
from tests.test_download import fetched, made


def stream_of(worker, entries):
    patience = worker.settings.upload_patience_seconds
    return ArchiveStream(worker.store, patience, entries, asyncio.get_running_loop())


async def archived(worker, process_id, **fields):
    return await worker("bulk_download", archive=True, process_id=process_id, **fields)


def opened(reply):
    [file] = reply["files"]
    assert file["path"] == "archive.zip"
    return zipfile.ZipFile(io.BytesIO(fetched(file["url"])))


@on_every_store
async def test_an_archive_holds_every_file_under_its_process(crowd):
    worker = crowd.worker(slots=4)
    names = await made(worker, 3, 2)
    reply = await archived(worker, "zip", process_ids=[*names, "nobody"])
    assert (reply["kind"], reply["status"]) == ("archive", "completed")
    assert reply["result"] == {"files": 6, "bytes": 96, "left_out": {"nobody": "not_found"}}
    with opened(reply) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            f"{name}/artifact-{number}.bin" for name in names for number in (1, 2)
        ]


async def test_a_pattern_chooses_what_is_archived(crowd):
    worker = crowd.worker(slots=4)
    names = await made(worker, 2, 3)
    with opened(await archived(worker, "zip", process_ids=names, pattern="*-2.bin")) as archive:
        assert archive.namelist() == ["p0/artifact-2.bin", "p1/artifact-2.bin"]


async def test_the_status_of_an_archive_shows_how_far_it_is(crowd):
    """On any worker, as of any process."""
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p", artifacts=3, artifact_bytes=READ_BYTES * 10)
    pause = owner.store.pause_before("get_range", nth=25)
    writing = asyncio.create_task(archived(owner, "zip", process_ids=["p"]))
    await pause.reached.wait()
    view = await owner.until("zip", lambda view: view["progress"])
    assert view["status"] == "running"
    assert view["progress"]["total"] > 3 * READ_BYTES * 10
    assert (await other("process_status", process_id="zip"))["status"] == "running"
    pause.go.set()
    end = (await writing)["progress"]
    assert end["step"] == end["total"]


@on_every_store
async def test_an_archive_can_be_cancelled_and_leaves_nothing_half_done(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=2, artifact_bytes=READ_BYTES * 10)
    pause = worker.store.pause_before("get_range", nth=12)
    writing = asyncio.create_task(archived(worker, "zip", process_ids=["p"]))
    await pause.reached.wait()
    assert (await worker("cancel", process_id="zip"))["status"] == "cancelled"
    assert (await writing)["status"] == "cancelled"
    page = await crowd.store.list("processes/zip/attempts/")
    assert page.objects == []


async def test_an_archive_whose_worker_died_is_written_by_the_next(crowd):
    owner, heir = crowd.worker(), crowd.heir()
    await owner.start("p", artifacts=1, artifact_bytes=READ_BYTES * 10)
    pause = owner.store.pause_before("get_range", nth=3)
    owner.held.append(asyncio.create_task(archived(owner, "zip", process_ids=["p"])))
    await pause.reached.wait()
    await owner.die()
    reply = await archived(heir, "zip", process_ids=["p"])
    assert (reply["status"], reply["attempt"]) == ("completed", 2)
    with opened(reply) as archive:
        assert archive.testzip() is None


async def test_asking_for_the_same_archive_again_answers_with_it(crowd):
    one, other = crowd.worker(), crowd.worker()
    await one.start("p", artifacts=1)
    first = await archived(one, "zip", process_ids=["p"])
    again = await archived(other, "zip", process_ids=["p"])
    assert again["revision"] == first["revision"]


async def test_a_control_worker_writes_archives_though_it_runs_no_jobs(crowd):
    await crowd.worker().start("p", artifacts=1)
    reply = await archived(crowd.worker(role="control"), "zip", process_ids=["p"])
    assert reply["status"] == "completed"


async def test_archives_take_no_slot_of_a_job(crowd):
    worker = crowd.worker(slots=1)
    await worker.start("p", artifacts=1)
    running = await worker.running("q")
    assert (await archived(worker, "zip", process_ids=["p"]))["status"] == "completed"
    await worker("cancel", process_id="q")
    await running


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda store, key: store.put(key, b"other bytes here"), id="other bytes"),
        pytest.param(lambda store, key: store.put(key, b"short"), id="shorter"),
        pytest.param(lambda store, key: store.delete([key]), id="gone"),
    ],
)
async def test_an_artifact_that_is_not_what_its_manifest_says_fails_the_archive(crowd, spoil):
    """Better none than one that passes for whole."""
    worker = crowd.worker()
    await worker.start("p", artifacts=2)
    await spoil(crowd.store, artifact_key("p", 1, "artifact-2.bin"))
    reply = await archived(worker, "zip", process_ids=["p"])
    assert reply["failure"]["code"] == reply["error"]["code"] == "archive_failed"
    assert "p/artifact-2.bin" in reply["failure"]["message"]
    assert (await crowd.store.list("processes/zip/attempts/")).objects == []


async def test_a_store_that_is_away_for_a_while_does_not_fail_an_archive(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    for call in ("get", "get_range", "upload_stream"):
        worker.store.fail(call, "")
    reply = await archived(worker, "zip", process_ids=["p"])
    assert (reply["status"], reply["attempt"]) == ("completed", 1)


async def test_one_read_that_fails_is_read_again_and_nothing_else(crowd):
    worker = crowd.worker(upload_patience_seconds=5)
    await worker.start("p", artifacts=1, artifact_bytes=READ_BYTES * 10)
    worker.store.fail("get_range", nth=6)
    assert (await archived(worker, "zip", process_ids=["p"]))["status"] == "completed"
    assert len(worker.store.asked("get_range")) == 11


async def test_what_may_still_change_is_left_out_and_told(crowd):
    worker = crowd.worker(slots=2)
    running = await worker.running("busy", artifacts=1)
    await worker.start("done", artifacts=1)
    await worker.start("empty")
    reply = await archived(worker, "zip", process_ids=["busy", "done", "empty"])
    assert reply["result"]["left_out"] == {"busy": "running", "empty": "no such files"}
    with opened(reply) as archive:
        assert archive.namelist() == ["done/artifact-1.bin"]
    await worker("cancel", process_id="busy")
    await running


async def test_names_that_differ_only_in_case_are_two_files_of_a_zip(crowd):
    store = crowd.store
    entries = []
    for name in ("a", "A"):
        await store.put(name, name.encode())
        entries.append(ZipEntry(name, name, 1, None))
    data = b"".join([chunk async for chunk in stream_of(crowd.worker(), entries).chunks()])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"a": b"a", "A": b"A"}


async def test_a_zip_is_of_the_announced_size(crowd):
    """Parts of an upload are cut by it."""
    store, entries = crowd.store, []
    for number in range(50):
        name = f"folder/\u00e9-{number}"
        await store.put(name, b"x" * number)
        entries.append(ZipEntry(name, name, number, None))
    stream = stream_of(crowd.worker(), entries)
    assert sum([len(chunk) async for chunk in stream.chunks()]) == stream.size


async def test_whoever_stops_listening_leaves_no_thread_waiting(crowd):
    await crowd.store.put("a", b"x" * (READ_BYTES * 4))
    chunks = stream_of(crowd.worker(), [ZipEntry("a", "a", READ_BYTES * 4, None)]).chunks()
    await anext(chunks)
    await chunks.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


@pytest.mark.parametrize("fields", [{}, {"pattern": "*.png"}], ids=["nobody", "no such file"])
async def test_a_zip_of_nothing_is_a_failure_and_no_empty_zip(crowd, fields):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    process_ids = ["p"] if fields else ["nobody"]
    reply = await archived(worker, "zip", process_ids=process_ids, **fields)
    assert (reply["status"], reply["failure"]["code"]) == ("failed", "nothing_to_archive")
    assert process_ids[0] in reply["failure"]["message"]
    assert reply["files"] == []


async def test_a_record_that_cannot_be_read_is_left_out_and_told(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    await crowd.store.put("processes/odd/record.json", b"not a record")
    reply = await archived(worker, "zip", process_ids=["odd", "p"])
    assert reply["result"]["left_out"] == {"odd": "unreadable"}
    assert reply["result"]["files"] == 1


async def test_a_file_that_shrinks_while_it_is_read_ends_the_stream(crowd):
    await crowd.store.put("a", b"short")
    stream = stream_of(crowd.worker(), [ZipEntry("a", "a", 100, None)])
    with pytest.raises(ArchiveFailed, match="size"):
        [chunk async for chunk in stream.chunks()]


@pytest.mark.big
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("place", "size"), [("local", 1 << 30), ("ceph", 100 << 20)], indirect=["place"]
)
def test_five_gigabytes_are_archived_in_64_mebibytes_of_memory(place, size, tmp_path):
    """On a folder; on Ceph RGW, which keeps everything in memory here, half a gigabyte."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.big_archive", json.dumps(place), tmp_path, str(size)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["status"] == "completed"
    assert told["result"] == {"files": 5, "bytes": 5 * size, "left_out": {}}
    assert 5 * size < told["size"] < 5 * size + 2000
    assert told["extra_bytes"] < 64 << 20
