"""A worker that stands still for two leases and then moves again, as FlashBoot does it.

By then another worker has the process. The old owner finds out by itself, from the first write
that is refused: it kills its child and leaves no trace outside its own attempt.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from records.keys import attempt_prefix
from tests.endpoint import SHORT_LEASE, Endpoint
from tests.invariants import violations
from tests.servers import keys_of, on_ceph, on_local
from tests.worker_process import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from records.record import Record
    from tests.control_plane import Job
    from tests.worker_process import Worker

LEASE = SHORT_LEASE["lease_seconds"]


@on_ceph
async def test_a_thawed_owner_lets_go_of_what_another_has_taken(endpoint: Endpoint) -> None:
    params = {"seconds": 10, "steps": 100, "checkpoint_every": 5, "artifacts": 1}
    async with taken_over(endpoint, params, children=True) as (old, job):
        (_, at_the_thaw) = await asyncio.gather(
            eventually(lambda: not old.children(), "its child is dead"),
            heartbeats(endpoint, job, 5),
        )
        assert not old.children()
        assert at_the_thaw.attempt == 2
        await endpoint.plane.finished(job.id)
        await endpoint.plane.until(lambda: endpoint.plane.ignored_results, "it answered, too")
    ((_, worker, payload),) = endpoint.plane.ignored_results
    assert (worker, job.worker) == ("old", "new")
    assert payload["output"]["revision"] == job.output["revision"]  # it follows the new owner
    assert job.output["result"]["resumed_from"] >= 5
    await nothing_was_added_by_the_old_one(endpoint, job)


@on_local
async def test_a_child_that_went_on_without_its_frozen_worker_is_killed(endpoint: Endpoint) -> None:
    params = {"seconds": 600, "steps": 6000, "checkpoint_every": 5, "spawn_grandchild": True}
    async with taken_over(endpoint, params, children=False) as (old, job):
        await eventually(lambda: not old.children(), "its child is dead")
        assert (await heartbeats(endpoint, job, 3)).status == "running"
        assert (await endpoint.ask("cancel", process_id=job.id))["status"] == "cancelled"
        await endpoint.plane.finished(job.id)
    await nothing_was_added_by_the_old_one(endpoint, job)


@on_local
async def test_a_child_that_finished_without_its_frozen_worker_finished_for_nothing(
    endpoint: Endpoint,
) -> None:
    """Its worker hears of the end at once, and would only have to write it down."""
    params = {"seconds": 8, "steps": 80, "checkpoint_every": 5, "artifacts": 1}
    async with taken_over(endpoint, params, children=False, child_ends=True) as (old, job):
        await endpoint.plane.finished(job.id)
        await endpoint.plane.until(lambda: endpoint.plane.ignored_results, "it answered, too")
        assert not old.children()
    assert (job.output["attempt"], job.output["worker_id"]) == (2, "new")
    await nothing_was_added_by_the_old_one(endpoint, job)


@asynccontextmanager
async def taken_over(
    endpoint: Endpoint, params: dict[str, object], *, children: bool, child_ends: bool = False
) -> AsyncIterator[tuple[Worker, Job]]:
    """A job that `new` runs, and `old`, who had it before, thawed just now."""
    async with (
        endpoint.worker("old", **SHORT_LEASE) as old,
        endpoint.worker("new", **SHORT_LEASE) as new,
    ):
        await asyncio.gather(old.wait_ready(), new.wait_ready())
        job = endpoint.plane.submit(
            {"action": "start", "kind": "sleep", "params": params}, only="old"
        )
        await endpoint.running(job.id, checkpoints=1)
        old.freeze(children=children)
        frozen = (await endpoint.record(job.id)).updated_at
        endpoint.plane.lose("old")
        await endpoint.until(
            job.id,
            lambda r: (
                r.attempt == 2
                and r.status != "queued"
                and (r.updated_at - frozen).total_seconds() > 2 * LEASE
            ),
        )
        if child_ends:
            await eventually(lambda: not old.children(), "the old child came to its end")
        else:
            assert old.children()
        old.thaw()
        yield old, job


async def heartbeats(endpoint: Endpoint, job: Job, count: int) -> Record:
    """Watch the owner write so often: every version is its own, and follows the one before."""
    record = await endpoint.record(job.id)
    for _ in range(count):
        before = record
        record = await endpoint.until(job.id, lambda r, last=before: r.revision > last.revision)
        assert (record.writer.worker_id, record.attempt) == ("new", 2)
    return record


async def nothing_was_added_by_the_old_one(endpoint: Endpoint, job: Job) -> None:
    """History, index and files are those of the new owner; the old one's lie under attempt 1."""
    record = await endpoint.record(job.id)
    assert {(entry.worker_id, entry.attempt) for entry in record.history} == {
        ("old", 1),
        ("new", 2),
    }
    assert [entry.status for entry in record.history if entry.attempt == 1] == ["queued", "running"]
    assert await violations(endpoint.store, record) == []
    known = (attempt_prefix(job.id, 1), attempt_prefix(job.id, 2), "index/", "locks/", "workers/")
    others = {f"processes/{job.id}/record.json", f"processes/{job.id}/cancel"}
    keys = await keys_of(endpoint.store)
    assert [key for key in keys if not key.startswith(known) and key not in others] == []
