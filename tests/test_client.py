"""The client `podjobs` against real workers under the SDK's loop, on a folder and on Ceph RGW.

`strict` is Ceph RGW with links to write, as on AWS; a folder has no links, so that files go through
the worker.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from podjobs import (
    AsyncEndpoint,
    ProcessCancelled,
    ProcessFailed,
    ProcessInterrupted,
    Progressed,
    StatusChanged,
    watching,
)
from podjobs.errors import InvalidRequest, KeyRefused, UnknownProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.endpoint import Endpoint

on_both = pytest.mark.parametrize("place", ["local", "strict"], indirect=True)
on_links = pytest.mark.parametrize("place", ["strict"], indirect=True)
on_folder = pytest.mark.parametrize("place", ["local"], indirect=True)
LONG = {"seconds": 600, "steps": 6000, "checkpoint_every": 5}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client keeps caches, profiles and job ids; none of this machine's take part."""
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("RUNPOD_API_KEY", "PODJOBS_ENDPOINT", "PODJOBS_CONTROL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("LOOK_SECONDS", "ASK_SECONDS", "JOB_SECONDS"):
        monkeypatch.setattr(watching, name, 0.2)


@pytest.fixture
async def client(endpoint: Endpoint) -> AsyncIterator[AsyncEndpoint]:
    """A client that knows the platform's address and a key, and nothing of the store."""
    plane = endpoint.plane
    async with AsyncEndpoint(f"{plane.url}/v2/{plane.endpoint}", key=plane.api_key) as client:
        yield client


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as a person has it: an empty file, an odd name, a file manager's litter."""
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "a b.png").write_bytes(b"first" * 1000)
    (folder / "empty.txt").touch()
    (folder / ".DS_Store").write_bytes(b"litter")
    return folder


@on_both
async def test_one_call_uploads_starts_follows_and_another_downloads(
    endpoint, client, photos, tmp_path
):
    async with endpoint.worker("w1"):
        process = await client.start(
            "sleep", inputs={"photos": photos}, seconds=0, steps=3, artifacts=3, artifact_bytes=999
        )
        view = await process.wait()
        fetched = await process.download(tmp_path / "out")

        assert (view.status, len(fetched)) == ("completed", 3)
        assert all(file.verified for file in fetched)
        record = await endpoint.record(process.id)
        assert {file.path: file.sha256 for file in record.files or ()} == {
            file.path: _sha256(file.place) for file in fetched
        }
        assert not (tmp_path / "out" / ".podjobs").exists()


@on_both
async def test_the_same_files_are_sent_once(endpoint, client, photos):
    async with endpoint.worker("w1"):
        first = await client.upload(photos)
        again = await client.upload(photos)

    assert (first.files, first.sent_files) == (2, 2)
    assert (again.folder, again.sent_files) == (first.folder, 0)


@on_both
async def test_a_named_folder_gets_only_what_is_missing(endpoint, client, photos):
    async with endpoint.worker("w1"):
        await client.upload(photos, folder="photos")
        (photos / "new.png").write_bytes(b"new")

        assert (await client.upload(photos, folder="photos")).sent_files == 1


@on_folder
async def test_a_refused_start_raises_the_worker_s_error(endpoint, client):
    async with endpoint.worker("w1"):
        process = await client.start("sleep", sconds=1)
        with pytest.raises(InvalidRequest, match="seconds"):
            await process.wait()


@on_folder
async def test_a_failed_process_raises_with_its_view(endpoint, client):
    async with endpoint.worker("w1"):
        process = await client.start("sleep", seconds=0, steps=3, fail_at=2)
        with pytest.raises(ProcessFailed) as caught:
            await process.wait()

    assert (caught.value.code, caught.value.view.status) == ("job_error", "failed")


@on_both
async def test_a_cancelled_process_is_cancelled_whatever_the_platform_says(endpoint, client):
    async with endpoint.worker("w1"):
        process = await client.start("sleep", **LONG)
        await endpoint.running(process.id)
        assert (await process.cancel()).status == "cancelled"
        with pytest.raises(ProcessCancelled):
            await process.wait()

    [held, *_] = endpoint.plane.jobs.values()
    assert held.status == "COMPLETED"


@on_folder
async def test_a_start_that_no_worker_has_taken_is_queued_and_can_leave_the_queue(endpoint, client):
    process = await client.start("sleep")
    async for event in process.events():
        assert isinstance(event, StatusChanged)
        assert (event.view.status, event.view.source) == ("queued", "platform")
        break

    await process.leave_queue()

    with pytest.raises(ProcessCancelled):
        await process.wait()
    [job] = endpoint.plane.jobs.values()
    assert job.status == "CANCELLED"


@on_links
async def test_following_by_links_asks_no_worker(endpoint, client):
    async with endpoint.worker("w1"):
        process = await client.start("sleep", seconds=8, steps=80, print_lines=3)
        kinds = {event.type async for event in process.events()}

    assert kinds >= {"status", "progress", "log"}
    [start] = endpoint.plane.jobs.values()
    assert start.input["action"] == "start"


@on_both
async def test_steps_never_go_backwards_over_a_killed_worker(endpoint, client):
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(endpoint.worker("w1", lease_seconds=3))
        process = await client.start("sleep", seconds=6, steps=60, checkpoint_every=5)
        events = asyncio.create_task(_all(process.events(logs=False)))
        await endpoint.running(process.id, checkpoints=1)
        first.kill()
        await stack.enter_async_context(endpoint.worker("w2", lease_seconds=3))
        endpoint.plane.lose("w1")
        seen = await events

    steps = [event.step for event in seen if isinstance(event, Progressed)]
    assert steps == sorted(steps)
    last = [event.view for event in seen if isinstance(event, StatusChanged)][-1]
    assert (last.status, last.attempt) == ("completed", 2)


@on_folder
async def test_a_start_that_the_platform_timed_out_is_sent_again_and_resumes(endpoint, client):
    async with endpoint.worker("w1"):
        process = await client.start("sleep", seconds=5, steps=50, checkpoint_every=5)
        await endpoint.running(process.id, checkpoints=1)
        [job] = endpoint.plane.jobs.values()
        endpoint.plane._time_out(job)
        view = await process.wait()

    assert (view.status, view.attempt) == ("completed", 2)
    starts = [job for job in endpoint.plane.jobs.values() if job.input["action"] == "start"]
    assert len(starts) == 2


@on_folder
async def test_without_resume_a_timed_out_start_is_left_alone(endpoint, client):
    async with endpoint.worker("w1"):
        process = await client.start("sleep", **LONG)
        await endpoint.running(process.id)
        [job] = endpoint.plane.jobs.values()
        endpoint.plane._time_out(job)
        with pytest.raises(ProcessInterrupted):
            await process.wait(resume=False)


@on_folder
async def test_a_handle_from_an_id_alone_follows_fetches_and_deletes(endpoint, client, tmp_path):
    async with endpoint.worker("w1"):
        started = await client.start("sleep", seconds=0, steps=1, artifacts=1, process_id="mine")
        await started.wait()
        process = client.process("mine")

        assert (await process.wait()).status == "completed"
        assert len(await process.download(tmp_path / "out")) == 1
        assert (await process.delete())["objects"] > 0
        assert (await process.status()).status == "not_found"
        with pytest.raises(UnknownProcess):
            await process.wait()


@on_folder
async def test_the_policy_lets_a_job_run_for_a_day_or_as_long_as_it_may(endpoint, client):
    async with endpoint.worker("w1"):
        for timeout, allowed in ((None, 86_400), (100, 1900)):
            await (await client.start("sleep", seconds=0, timeout_seconds=timeout)).wait()
            jobs = [each for each in endpoint.plane.jobs.values() if "kind" in each.input]
            job = jobs[-1]
            assert (job.execution_timeout, job.ttl) == (allowed, allowed + 86_400)


@on_folder
async def test_a_wrong_key_is_refused_in_words(endpoint):
    plane = endpoint.plane
    async with AsyncEndpoint(f"{plane.url}/v2/{plane.endpoint}", key="wrong") as client:
        with pytest.raises(KeyRefused) as caught:
            await client.kinds()
    assert "podjobs login" in caught.value.next_step


async def _all(events):
    return [event async for event in events]


def _sha256(place):
    return hashlib.sha256(place.read_bytes()).hexdigest()
