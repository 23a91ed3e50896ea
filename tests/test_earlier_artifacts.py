"""Artifacts that a caller has seen stay part of the process, whatever happens to its worker."""

import asyncio

import pytest

from attempts import uploads
from child import runner
from jobs import JOBS
from records.manifest import artifact_key
from tests import sampling_job
from tests.crowd import on_every_store
from tests.invariants import violations

FIRST = ("loss.png", "samples/10.txt")
SECOND = ("loss.png", "samples/20.txt")


@pytest.fixture(autouse=True)
def _sampling(monkeypatch):
    for name, job in sampling_job.KINDS.items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (sampling_job.__file__,))


@pytest.fixture(params=[100, 1], ids=["in the record", "in manifests"])
def _inline(request, monkeypatch):
    """How many artifacts a record lists by itself."""
    monkeypatch.setattr(uploads, "MAX_FILES_INLINE", request.param)


def start(worker, first=FIRST, second=SECOND):
    params = {"first": [*first], "second": [*second]}
    task = asyncio.create_task(worker("start", kind="sampling", process_id="p", params=params))
    worker.held.append(task)
    return task


async def told(worker, count, **fields):
    """What `worker` tells of the artifacts, once there are `count` with their hashes."""
    while True:
        reply = await worker("download", process_id="p", **fields)
        rows = {row["path"]: row for row in reply.get("files", ())}
        if len(rows) == count and all(row["sha256"] for row in rows.values()):
            return rows
        await asyncio.sleep(0.05)


async def taken_over(crowd, **changes):
    """A process whose first worker died after its artifacts were seen; and its end."""
    first, other = crowd.worker(progress_write_seconds=0.1), crowd.worker()
    start(first)
    await told(other, len(FIRST))
    await first.die()
    heir = crowd.heir(**changes)
    return first, heir, await start(heir)


@pytest.mark.usefixtures("_inline")
@on_every_store
async def test_what_was_seen_before_a_takeover_is_there_after_it(crowd):
    _, _, view = await taken_over(crowd)

    assert (view["status"], view["attempt"]) == ("completed", 2)
    rows = await told(crowd.worker(), 3)
    assert {path: row["attempt"] for path, row in rows.items()} == {
        "loss.png": 2,
        "samples/10.txt": 1,
        "samples/20.txt": 2,
    }
    assert view["artifacts"]["count"] == 3
    assert view["artifacts"]["total_bytes"] == sum(row["size"] for row in rows.values())
    assert await violations(crowd.store, await crowd.record("p")) == []


async def test_it_is_there_while_the_next_attempt_runs(crowd):
    first, other = crowd.worker(progress_write_seconds=0.1), crowd.worker()
    start(first)
    await told(other, 2)
    await first.die()
    heir = crowd.heir(slots=1, progress_write_seconds=0.1)
    other_start = await heir.running("other")  # takes the only slot
    start(heir)
    record = await crowd.stored("p", "queued")
    assert [file.path for file in record.files] == [*FIRST]
    assert set(await told(other, 2)) == {*FIRST}
    other_start.cancel()


@pytest.mark.usefixtures("_inline")
async def test_an_attempt_that_died_before_it_listed_anything_loses_nothing(crowd, monkeypatch):
    first, other = crowd.worker(progress_write_seconds=0.1), crowd.worker()
    start(first)
    await told(other, len(FIRST))
    await first.die()
    second = crowd.heir()
    claimed = asyncio.Event()

    async def held(_self):
        claimed.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(uploads.Uploads, "inherit", held)
        start(second)
        await claimed.wait()
        await second.die()
    view = await start(crowd.heir())

    assert (view["status"], view["attempt"]) == ("completed", 3)
    assert len(await told(crowd.worker(), 3)) == 3


@pytest.mark.usefixtures("_inline")
async def test_what_a_fenced_attempt_adds_afterwards_never_counts(crowd):
    await taken_over(crowd)
    await crowd.store.put(artifact_key("p", 1, "late.txt"), b"of a zombie")
    assert "late.txt" not in await told(crowd.worker(), 3)


@pytest.mark.usefixtures("_inline")
async def test_download_takes_an_attempt(crowd):
    _, heir, _ = await taken_over(crowd)
    assert {*await told(heir, 2, attempt=2)} == {*SECOND}
    before = await heir("download", process_id="p", attempt=1)
    assert {row["path"] for row in before["files"]} == {*FIRST}
    one = await heir("download", process_id="p", attempt=1, path="loss.png")
    assert "/attempts/1/" in one["files"][0]["url"]
    assert (await heir("download", process_id="p", attempt=3))["error"]["code"] == "unknown_attempt"


@on_every_store
async def test_inputs_and_archives_have_the_earlier_ones_too(crowd):
    _, heir, _ = await taken_over(crowd)
    archive = await heir("bulk_download", process_ids=["p"], archive=True, process_id="zip")
    assert archive["result"]["files"] == 3
    chunk = await heir("download_file", process_id="p", path="samples/10.txt")
    assert chunk["size"] == len("samples/10.txt of attempt 1")


@on_every_store
async def test_a_deletion_removes_what_all_attempts_stored(crowd):
    _, heir, _ = await taken_over(crowd)
    await heir("delete", process_id="p", confirm="p")
    assert not (await crowd.store.list("processes/p/attempts/")).objects


async def test_a_running_process_has_the_same_hashes_from_every_worker(crowd):
    owner, other = crowd.worker(progress_write_seconds=0.1), crowd.worker()
    start(owner)
    mine, theirs = await told(owner, 2), await told(other, 2)
    assert {path: row["sha256"] for path, row in mine.items()} == {
        path: row["sha256"] for path, row in theirs.items()
    }
