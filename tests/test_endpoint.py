"""The worker as it runs on RunPod: real processes, the SDK's own loop, the official client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.endpoint import SHORT_LEASE, Endpoint, start_of
from tests.invariants import violations
from tests.servers import on_both_stores, on_local, on_strict
from tests.worker_process import eventually

#: Longer than any test.
LONG = {"seconds": 600, "steps": 6000}


# ---- one worker


@on_both_stores
async def test_run_gives_the_files_of_a_process_that_is_called_like_the_job(
    endpoint: Endpoint,
) -> None:
    async with endpoint.worker("w1"):
        with endpoint.plane.client() as client:
            job = await asyncio.to_thread(client.run, start_of(artifacts=2, artifact_bytes=5))
            output = await asyncio.to_thread(job.output, timeout=60)
            assert await asyncio.to_thread(job.status) == "COMPLETED"
    assert (output["process_id"], output["status"]) == (job.job_id, "completed")
    assert [file["path"] for file in output["files"]] == ["artifact-1.bin", "artifact-2.bin"]
    assert [await _fetch(file["url"]) for file in output["files"]] == [bytes(5)] * 2
    assert await violations(endpoint.store, await endpoint.record(job.job_id)) == []


@on_strict
async def test_runpods_status_shows_progress_in_order_and_with_links(endpoint: Endpoint) -> None:
    async with endpoint.worker("w1"):
        job = endpoint.start(seconds=6, steps=60)
        with endpoint.plane.client() as client:
            await endpoint.plane.until(lambda: job.updates, "progress arrived")
            reply = await asyncio.to_thread(
                client.rp_client.get, f"{endpoint.plane.endpoint}/status/{job.id}"
            )
        assert reply["status"] == "IN_PROGRESS"
        assert set(reply["output"]["links"]) == {"status", "cancel", "log"}
        await endpoint.plane.finished(job.id)
    steps = [update["progress"]["step"] for update in job.updates if update["progress"]]
    assert steps == sorted(set(steps))
    assert steps
    assert endpoint.plane.late_updates == []
    assert "links" not in job.output  # there is nothing left to follow or to cancel


@on_local
async def test_rows_that_are_no_jobs_end_nothing(endpoint: Endpoint) -> None:
    """A batch of jobs by hand may hold empty rows; the SDK's loop would end, and all that runs."""
    async with endpoint.worker("w1"):
        start = endpoint.start(**LONG)
        await endpoint.running(start.id)
        endpoint.plane.odd_rows = [{}, None, "text", {"input": {}}, {"id": 5, "input": {}}, []]
        assert "kinds" in await endpoint.ask("kinds")
        assert not endpoint.plane.odd_rows
        assert (await endpoint.ask("process_status", process_id=start.id))["status"] == "running"
        assert (await endpoint.ask("cancel", process_id=start.id))["status"] == "cancelled"


@on_local
async def test_cancel_on_runpod_kills_the_child_and_is_recorded(endpoint: Endpoint) -> None:
    async with endpoint.worker("w1") as worker:
        job = endpoint.start(**LONG, spawn_grandchild=True)
        await endpoint.running(job.id, step=1)
        with endpoint.plane.client() as client:
            url = f"{endpoint.plane.endpoint}/cancel/{job.id}"
            reply = await asyncio.to_thread(client.rp_client.post, url, {})
        assert reply["status"] == "CANCELLED"
        record = await endpoint.until(job.id, lambda record: record.released)
        assert not worker.children()  # it is recorded only after the whole group is gone
        assert record.status == "cancelled"
        assert record.failure is not None
        assert record.failure.code == "stopped_by_platform"


@on_local
async def test_retry_resumes_a_failed_process_from_its_checkpoint(endpoint: Endpoint) -> None:
    async with endpoint.worker("w1") as worker:
        job = endpoint.start(seconds=4, steps=40, checkpoint_every=10)
        await endpoint.running(job.id, checkpoints=1)
        worker.children()[-1].kill()  # the job, below its guardian
        await endpoint.plane.finished(job.id)
        assert job.status == "FAILED"
        assert set(json.loads(job.error)) == {"code", "message", "retryable"}
        with endpoint.plane.client() as client:
            url = f"{endpoint.plane.endpoint}/retry/{job.id}"
            await asyncio.to_thread(client.rp_client.post, url, {})
        await endpoint.plane.finished(job.id)
    assert (job.status, job.deliveries) == ("COMPLETED", 2)
    assert (job.output["process_id"], job.output["attempt"]) == (job.id, 2)
    assert job.output["result"]["resumed_from"] >= 10
    assert await violations(endpoint.store, await endpoint.record(job.id)) == []


# ---- several


@on_both_stores
async def test_another_worker_answers_while_one_is_busy(endpoint: Endpoint) -> None:
    async with endpoint.worker("gpu", role="gpu"):
        job = endpoint.start(**LONG)
        await endpoint.running(job.id, step=1)
        async with endpoint.worker("control", role="control"):
            with endpoint.plane.client() as client:
                asked = {"action": "process_status", "process_id": job.id}
                view = await asyncio.to_thread(client.run_sync, asked, 60)
    assert (view["status"], view["worker_id"], view["source"]) == ("running", "gpu", "storage")


@on_local
async def test_status_is_answered_and_right_at_ten_a_second(endpoint: Endpoint) -> None:
    """On the worker that runs the process, and on another, from its first step to its end."""
    async with endpoint.worker("w1") as owner, endpoint.worker("w2") as other:
        await asyncio.gather(owner.wait_ready(), other.wait_ready())
        job = endpoint.start(seconds=4, steps=40, only="w1")
        await endpoint.running(job.id)
        asked = {"action": "process_status", "process_id": job.id}
        polls = {"w1": [], "w2": []}
        while not job.finished:
            for worker_id, sent in polls.items():
                sent.append(endpoint.plane.submit(asked, sync=True, only=worker_id))
            await asyncio.sleep(0.1)
        for poll in [*polls["w1"], *polls["w2"]]:
            await endpoint.plane.finished(poll.id)
    for worker_id, sent in polls.items():
        views = [poll.output for poll in sent]
        assert {view["worker_id"] for view in views} == {"w1"}
        assert {view["status"] for view in views} <= {"running", "completed"}
        assert {view["source"] for view in views[:5]} == {
            "memory" if worker_id == "w1" else "storage"
        }
    assert job.status == "COMPLETED"


@on_local
async def test_the_role_control_starts_nothing_and_answers_the_rest(endpoint: Endpoint) -> None:
    async with endpoint.worker("gpu", role="gpu"):
        job = endpoint.start(**LONG)
        await endpoint.running(job.id)
        async with endpoint.worker("control", role="control"):
            refused = endpoint.start(only="control")
            await endpoint.plane.finished(refused.id)
            assert refused.status == "FAILED"
            assert json.loads(refused.error)["code"] == "refused"
            view = await endpoint.ask("process_status", process_id=job.id, only="control")
            assert view["status"] == "running"
            view = await endpoint.ask("cancel", process_id=job.id, only="control")
            assert view["status"] == "cancelled"
        await endpoint.plane.finished(job.id)
    assert job.output["revision"] == view["revision"]


@on_local
async def test_the_role_gpu_takes_no_start_that_it_has_no_slot_for(endpoint: Endpoint) -> None:
    async with endpoint.worker("w1", role="gpu", slots=2) as worker:
        await worker.wait_ready()
        first, second, third = (endpoint.start(**LONG) for _ in range(3))
        await asyncio.gather(endpoint.running(first.id), endpoint.running(second.id))
        assert third.status == "IN_QUEUE"
        endpoint.plane.cancel(first.id)
        await endpoint.running(third.id)
        assert max(endpoint.plane.seen("w1").batch_sizes) <= 2


@on_both_stores
async def test_of_two_deliveries_at_once_one_runs_and_both_answer_the_same(
    endpoint: Endpoint,
) -> None:
    async with endpoint.worker("w1") as one, endpoint.worker("w2") as two:
        await asyncio.gather(one.wait_ready(), two.wait_ready())
        job = endpoint.start(seconds=3, steps=30, only="w1")
        await endpoint.plane.taken(job.id, by="w1")
        endpoint.plane.redeliver(job)  # w1 knows nothing of it
        job.only = "w2"
        await endpoint.plane.finished(job.id)
        await endpoint.plane.until(lambda: endpoint.plane.ignored_results, "w1 answered, too")
    ((_, worker, payload),) = endpoint.plane.ignored_results
    assert (worker, job.worker) == ("w1", "w2")
    told = ("process_id", "status", "revision", "attempt", "worker_id", "result", "history")
    assert {name: payload["output"][name] for name in told} == {n: job.output[n] for n in told}
    assert [entry["status"] for entry in job.output["history"]] == [
        "queued",
        "running",
        "completed",
    ]


# ---- the end of a worker


@on_both_stores
async def test_a_killed_workers_process_goes_on_elsewhere(endpoint: Endpoint) -> None:
    params = {"seconds": 6, "steps": 60, "checkpoint_every": 10, "artifacts": 1}
    async with endpoint.worker("w1", **SHORT_LEASE) as first:
        job = endpoint.start(**params)
        await endpoint.running(job.id, checkpoints=1)
        first.kill()
        await eventually(lambda: not first.descendants(), "the child died with its worker")
        saved = (await endpoint.record(job.id)).checkpoints[-1].seq * 10
        endpoint.plane.lose("w1")
        async with endpoint.worker("w2", **SHORT_LEASE):
            await endpoint.plane.finished(job.id)
    assert (job.status, job.output["attempt"], job.output["worker_id"]) == ("COMPLETED", 2, "w2")
    assert job.output["result"]["resumed_from"] == saved
    assert "worker w1 was lost" in [entry["reason"] for entry in job.output["history"]]
    assert await violations(endpoint.store, await endpoint.record(job.id)) == []


@on_both_stores
async def test_sigterm_saves_the_work_and_leaves_the_job_to_another_worker(
    endpoint: Endpoint,
) -> None:
    async with endpoint.worker("w1") as first:
        job = endpoint.start(seconds=4, steps=40)
        await endpoint.running(job.id, step=5)
        first.terminate()
        assert await first.exited() == 0
        record = await endpoint.record(job.id)
        assert record.status == "interrupted"
        assert len(record.checkpoints) == 1  # made because it was asked to
        assert job.status == "IN_PROGRESS"  # not answered: RunPod has to deliver it again
        await eventually(lambda: not first.descendants(), "all that it had is gone")
        endpoint.plane.lose("w1")
        async with endpoint.worker("w2"):
            await endpoint.plane.finished(job.id)  # without waiting for any lease
    assert (job.status, job.output["attempt"]) == ("COMPLETED", 2)
    assert job.output["result"]["resumed_from"] >= 5
    assert await violations(endpoint.store, await endpoint.record(job.id)) == []


@on_local
async def test_sigterm_lets_the_replies_that_are_due_go_out(endpoint: Endpoint) -> None:
    async with endpoint.worker("w1") as worker:
        job = endpoint.start(**LONG)
        await endpoint.running(job.id)
        asked = {
            "action": "process_status",
            "process_id": job.id,
            "wait_seconds": 300,
            "since_revision": 1000,
        }
        poll = endpoint.plane.submit(asked, sync=True)
        await endpoint.plane.taken(poll.id)
        worker.terminate()
        assert await worker.exited() == 0
    assert poll.output["status"] == "interrupted"


# ---- with no worker


@on_strict
async def test_a_link_follows_and_cancels_a_process_without_asking_a_worker(
    endpoint: Endpoint,
) -> None:
    async with endpoint.worker("w1", role="gpu"), httpx.AsyncClient(trust_env=False) as http:
        job = endpoint.start(**LONG)
        await endpoint.plane.until(lambda: _runs(job.progress), "an update with links")
        links = job.progress["links"]
        seen = (await http.get(links["status"])).json()
        assert (seen["process_id"], seen["status"]) == (job.id, "running")
        assert (await http.put(links["cancel"])).status_code == 200
        await endpoint.plane.finished(job.id)
        seen = (await http.get(links["status"])).json()
    assert seen["status"] == job.output["status"] == "cancelled"
    assert endpoint.plane.seen("w1").batch_sizes  # and all it was ever handed is this one job
    assert list(endpoint.plane.jobs) == [job.id]


@on_strict
async def test_a_link_works_when_no_worker_is_alive(endpoint: Endpoint) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        async with endpoint.worker("w1") as worker:
            job = endpoint.start(**LONG)
            await endpoint.plane.until(lambda: _runs(job.progress), "an update with links")
            links = job.progress["links"]
            worker.kill()
        seen = (await http.get(links["status"])).json()
        assert (seen["status"], seen["writer"]["worker_id"]) == ("running", "w1")
        assert (await http.put(links["cancel"])).status_code == 200
        # Whoever is handed the job next sees the wish, and lets it be.
        endpoint.plane.lose("w1")
        async with endpoint.worker("w2", **SHORT_LEASE) as heir:
            await endpoint.plane.finished(job.id)
            assert not heir.children()
    assert job.output["status"] == "cancelled"
    assert [entry["status"] for entry in job.output["history"]].count("running") == 1


def _runs(update: Any) -> bool:
    return bool(update) and update["status"] == "running"


async def _fetch(url: str) -> bytes:
    if url.startswith("file:"):
        return Path(urlsplit(url).path).read_bytes()
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(url)).content
