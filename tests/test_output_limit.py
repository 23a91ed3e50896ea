"""Outputs of any size are refused before a byte is sent, with the numbers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from child import runner
from jobs import JOBS
from tests import sampling_job
from tests.crowd import on_every_store, until

if TYPE_CHECKING:
    from tests.crowd import Crowd


@on_every_store
async def test_a_process_stores_no_more_than_the_limit_and_keeps_what_fits(crowd: Crowd) -> None:
    worker = crowd.worker(max_output_bytes=2500)
    view = await worker.start("p", steps=1, artifacts=3, artifact_bytes=1000)
    assert (view["status"], view["failure"]["code"]) == ("failed", "output_too_large")
    assert not view["failure"]["retryable"]
    assert "WORKER_MAX_OUTPUT_BYTES (2500)" in view["failure"]["message"]
    assert len(view["files"]) == 2


async def test_what_is_sent_again_counts_once(crowd: Crowd) -> None:
    """A resumed process replaces its own artifacts."""
    worker = crowd.worker(max_output_bytes=2500)
    assert (await worker.start("p", steps=2, fail_at=2, artifacts=2, artifact_bytes=1000))[
        "artifacts"
    ]["count"] == 2
    view = await worker.start("p", steps=2, fail_at=2, artifacts=2, artifact_bytes=1000)
    assert (view["attempt"], view["artifacts"]["total_bytes"]) == (2, 2000)
    assert view["failure"]["code"] == "job_error"


@pytest.mark.usefixtures("input_kinds")
async def test_a_sparse_file_costs_no_request(crowd: Crowd) -> None:
    worker = crowd.worker(max_output_bytes=1 << 40)
    view = await worker(
        "start", kind="write_files", process_id="p", params={"sparse": {"huge": 1 << 42}}
    )
    assert view["failure"]["code"] == "output_too_large"
    assert str(1 << 42) in view["failure"]["message"]
    assert not worker.store.asked("upload", key="huge")


async def test_a_checkpoint_that_holds_more_is_not_kept(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of its files count, not each by itself. The job goes on."""
    monkeypatch.setitem(JOBS, "sampling", sampling_job.KINDS["sampling"])
    monkeypatch.setattr(runner, "ENTRY", (sampling_job.__file__,))
    worker = crowd.worker(max_output_bytes=1500)
    params = {"first": [], "checkpoint": [1000, 1000]}
    start = worker("start", kind="sampling", process_id="p", params=params)
    worker.held.append(asyncio.create_task(start))
    await until(lambda: "checkpoint 1 was not stored" in caplog.text)
    assert "WORKER_MAX_OUTPUT_BYTES (1500)" in caplog.text
    record = await crowd.record("p")
    assert (record.status, record.checkpoints) == ("running", ())


async def test_an_archive_is_held_to_it_too(crowd: Crowd) -> None:
    assert (await crowd.worker().start("p", steps=1, artifacts=1, artifact_bytes=5000))["files"]
    worker = crowd.worker(max_output_bytes=2500)
    reply = await worker("bulk_download", process_ids=["p"], archive=True, process_id="zip")
    assert reply["failure"]["code"] == "output_too_large"
