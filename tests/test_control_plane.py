"""The double of RunPod's control plane does to workers and clients what RunPod does.

The workers are real processes that run the unmodified SDK loop, the client is the official one.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
import requests

from tests.control_plane import ControlPlane, Refused
from tests.patience import PATIENCE
from tests.worker_process import Worker, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ECHO = "tests/echo_worker.py"
HOLD = {"hold": True}


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane() as plane:
        yield plane


@pytest.fixture
async def worker(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Worker]:
    async with Worker(plane, ECHO, tmp_path) as worker:
        yield await worker.wait_ready()


def holds(plane: ControlPlane, job_id: str) -> bool:
    """The handler itself has said that it holds the job: the SDK's task exists, a stop can hit."""
    return "holding" in plane.jobs[job_id].updates


# -- the client's side -------------------------------------------------------------------------


async def test_run_and_runsync_are_executed_and_answered(
    plane: ControlPlane, worker: Worker
) -> None:
    with plane.client() as endpoint:
        job = await asyncio.to_thread(endpoint.run, {"echo": "hello"})
        assert await asyncio.to_thread(job.output, timeout=PATIENCE) == {"echo": "hello", "pad": ""}
        assert job.status() == "COMPLETED"
        output = await asyncio.to_thread(endpoint.run_sync, {"echo": 1}, timeout=PATIENCE)
        assert output == {"echo": 1, "pad": ""}
    assert plane.jobs[job.job_id].view()["workerId"] == worker.id
    assert not plane.violations


async def test_runsync_answers_the_id_when_its_wait_is_over() -> None:
    async with ControlPlane(runsync_wait=0.1) as plane:
        with plane.client() as endpoint:
            reply = await asyncio.to_thread(
                endpoint.rp_client.post, f"{plane.endpoint}/runsync", {"input": HOLD}
            )
    assert reply == {"id": next(iter(plane.jobs)), "status": "IN_QUEUE"}


async def test_a_generator_is_streamed_piece_by_piece(plane: ControlPlane, tmp_path: Path) -> None:
    async with Worker(plane, ECHO, tmp_path, env={"ECHO_STREAM": "1"}):
        with plane.client() as endpoint:
            job = await asyncio.to_thread(endpoint.run, {"pieces": [1, 2, 3]})
            assert await asyncio.to_thread(lambda: list(job.stream())) == [1, 2, 3]


async def test_health_counts_jobs_and_workers_and_purge_empties_the_queue(
    plane: ControlPlane, worker: Worker
) -> None:
    held = plane.submit(HOLD)
    await plane.taken(held.id)
    waiting = plane.submit({"echo": 1})
    with plane.client() as endpoint:
        health = await asyncio.to_thread(endpoint.health)
        assert health["jobs"] | {"inProgress": 1, "inQueue": 1} == health["jobs"]
        assert health["workers"] | {"running": 1, "idle": 0} == health["workers"]
        purged = await asyncio.to_thread(endpoint.purge_queue)
    assert purged == {"removed": 1, "status": "completed"}
    assert (held.status, waiting.status) == ("IN_PROGRESS", "CANCELLED")


async def test_a_stranger_is_refused(plane: ControlPlane) -> None:
    with plane.client() as endpoint:
        endpoint.rp_client.headers["Authorization"] = "Bearer another-key"
        with pytest.raises(RuntimeError, match="401"):
            await asyncio.to_thread(endpoint.health)


async def test_a_request_over_the_limit_is_refused(plane: ControlPlane) -> None:
    with plane.client() as endpoint:
        with pytest.raises(requests.HTTPError, match="400"):
            await asyncio.to_thread(endpoint.run, {"pad": "x" * 10_000_000})
        assert plane.jobs == {}
    plane.submit({"pad": "x" * 10_000_000}, sync=True)  # /runsync takes twice as much


# -- progress ----------------------------------------------------------------------------------


async def test_updates_arrive_in_order_and_the_latest_is_the_output(
    plane: ControlPlane, worker: Worker
) -> None:
    sent = [{"step": step} for step in range(20)]
    job = plane.submit({"updates": sent, "hold": True})
    await plane.until(lambda: holds(plane, job.id), "all updates arrived")
    assert job.updates == [*sent, "holding"]
    assert job.view()["output"] == "holding"
    assert not plane.violations


async def test_an_update_after_the_result_is_a_violation(
    plane: ControlPlane, worker: Worker
) -> None:
    job = plane.submit({"late": "too late"})
    await plane.until(lambda: plane.late_updates, "the late update arrived")
    assert plane.late_updates == [(job.id, "too late")]
    assert plane.violations
    assert job.view()["output"] == {"echo": None, "pad": ""}


# -- stopping ----------------------------------------------------------------------------------


async def test_cancel_reaches_the_handler(plane: ControlPlane, worker: Worker) -> None:
    with plane.client() as endpoint:
        job = await asyncio.to_thread(endpoint.run, HOLD)
        await plane.until(lambda: holds(plane, job.job_id), "the handler holds the job")
        reply = await asyncio.to_thread(job.cancel)
        assert reply == {"id": job.job_id, "status": "CANCELLED"}
        assert await asyncio.to_thread(job.status) == "CANCELLED"
    await eventually(lambda: f"CANCELLED {job.job_id}" in worker.output(), "handler was told")
    assert plane.ignored_results == []  # the SDK answers nothing for a stopped job


async def test_cancel_in_the_queue_needs_no_worker(plane: ControlPlane) -> None:
    job = plane.submit(HOLD)
    assert plane.cancel(job.id).status == "CANCELLED"
    assert not plane.queue


async def test_the_execution_timeout_stops_the_handler(plane: ControlPlane, worker: Worker) -> None:
    job = plane.submit(HOLD, policy={"executionTimeout": 1500})
    await plane.finished(job.id)
    assert job.status == "TIMED_OUT"
    await eventually(lambda: f"CANCELLED {job.id}" in worker.output(), "handler was told")


async def test_the_ttl_ends_a_job_that_nobody_took(plane: ControlPlane) -> None:
    job = plane.submit(HOLD, policy={"ttl": 50})
    await plane.finished(job.id)
    assert job.status == "TIMED_OUT"


async def test_the_ttl_deletes_even_a_job_that_runs(plane: ControlPlane) -> None:
    job = plane.submit(HOLD, policy={"ttl": 50})
    assert await plane.take("w1", 1, connected=lambda: True) == [job]
    await plane.finished(job.id)
    assert await plane.stops("w1", connected=lambda: True) == [job.id]
    with plane.client() as endpoint, pytest.raises(requests.HTTPError, match="404"):
        await asyncio.to_thread(endpoint.rp_client.get, f"{plane.endpoint}/status/{job.id}")


# -- again under the same id -------------------------------------------------------------------


async def test_retry_delivers_a_failed_job_again_and_no_other(
    plane: ControlPlane, worker: Worker
) -> None:
    job = plane.submit({"fail_times": 1, "echo": "second"})
    await plane.finished(job.id)
    assert (job.status, job.error) == ("FAILED", "as ordered")
    plane.retry(job.id)
    await plane.finished(job.id)
    assert (job.status, job.deliveries) == ("COMPLETED", 2)
    assert "error" not in job.view()
    with pytest.raises(Refused, match="COMPLETED"):
        plane.retry(job.id)


async def test_the_job_of_a_killed_worker_goes_to_another(tmp_path: Path) -> None:
    async with (
        ControlPlane(ping_loss=3.0) as plane,
        Worker(plane, ECHO, tmp_path, "w1") as first,
    ):
        job = plane.submit(HOLD)
        await plane.until(lambda: holds(plane, job.id), "w1 holds the job")
        first.kill()
        assert not first.descendants()  # the ping process too, or the loss would go unnoticed
        await plane.until(lambda: job.status == "IN_QUEUE", "the silence was noticed")
        async with Worker(plane, ECHO, tmp_path, "w2"):
            await plane.taken(job.id, by="w2")
        assert job.deliveries == 2


async def test_a_thawed_worker_is_too_late_with_its_result(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with (
        Worker(plane, ECHO, tmp_path, "w1", {"ECHO_CONCURRENCY": "2"}) as first,
        Worker(plane, ECHO, tmp_path, "w2") as second,
    ):
        await asyncio.gather(first.wait_ready(), second.wait_ready())
        gate = tmp_path / "gate"
        job = plane.submit({"gate": str(gate), "echo": "mine"}, only="w1")
        await plane.until(lambda: job.updates, "w1 runs the job")
        first.freeze()
        plane.lose("w1")
        gate.touch()
        await plane.finished(job.id)
        assert job.worker == "w2"
        # w1 froze with an open job-take: whoever was given up must not swallow the next job
        another = plane.submit({"echo": "next"})
        await plane.finished(another.id)
        assert another.worker == "w2"
        first.thaw()
        await plane.until(lambda: plane.ignored_results, "w1 answered")
    assert [(job_id, worker) for job_id, worker, _ in plane.ignored_results] == [(job.id, "w1")]
    assert job.worker == "w2"


# -- the worker's side -------------------------------------------------------------------------


async def test_an_output_over_the_limit_fails_the_job(plane: ControlPlane, worker: Worker) -> None:
    small = plane.submit({"bytes": 9_900_000})
    large = plane.submit({"bytes": 10_000_000})
    sync = plane.submit({"bytes": 19_900_000}, sync=True)
    for job in (small, large, sync):
        await plane.finished(job.id)
    assert [job.status for job in (small, large, sync)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert len(plane.violations) == 1


async def test_a_concurrent_worker_takes_a_batch(plane: ControlPlane, tmp_path: Path) -> None:
    jobs = [plane.submit(HOLD) for _ in range(5)]
    async with Worker(plane, ECHO, tmp_path, env={"ECHO_CONCURRENCY": "4"}) as worker:
        await plane.until(lambda: sum(holds(plane, job.id) for job in jobs) == 4, "four at once")
        assert plane.seen(worker.id).batch_sizes[0] == 4
    assert jobs[4].status == "IN_QUEUE"


async def test_pings_tell_which_jobs_a_worker_holds(plane: ControlPlane, worker: Worker) -> None:
    job = plane.submit(HOLD)
    await plane.until(lambda: plane.seen(worker.id).ping_jobs == [job.id], "the ping names the job")
    plane.cancel(job.id)
    await plane.until(lambda: plane.seen(worker.id).ping_jobs == [], "the job left the ping")
    assert job.status == "CANCELLED"


# -- the processes -----------------------------------------------------------------------------

ORPHANS = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("started", flush=True)
os.kill(os.getpid(), {signal})
time.sleep(1000)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_nothing_a_worker_started_outlives_the_test(
    plane: ControlPlane, tmp_path: Path, end: signal.Signals
) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS.format(signal=int(end)))
    async with Worker(plane, script, tmp_path) as worker:
        await eventually(lambda: "started" in worker.output(), "the child was started")
        if end == signal.SIGKILL:
            assert await worker.exited() == -signal.SIGKILL
        (child,) = worker.children()
        assert os.getsid(child.pid) == child.pid
    assert not child.is_running()
    assert not worker.descendants()


async def test_a_freeze_stops_the_tree_and_a_thaw_moves_it_again(
    plane: ControlPlane, worker: Worker
) -> None:
    worker.freeze(children=True)
    assert {process.status() for process in worker.descendants()} == {"stopped"}
    worker.thaw()
    job = plane.submit({"echo": "awake"})
    await plane.finished(job.id)


async def test_a_failed_wait_shows_what_happened(plane: ControlPlane, worker: Worker) -> None:
    job = plane.submit({"echo": 1})
    await plane.finished(job.id)
    with pytest.raises(AssertionError, match="never") as caught:
        await plane.until(lambda: False, "never", seconds=0)
    assert "taken by w1 (delivery 1)" in str(caught.value)
    assert "Starting Serverless Worker" in worker.story()
