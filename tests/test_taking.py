"""The worker survives every row that RunPod hands out: the SDK's own loop ends at an odd one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from runpod.serverless.modules import rp_job, rp_scale, worker_state

from api.taking import MAX_ID_LENGTH, guarded, usable_jobs

JOB = {"id": "a", "input": {"action": "kinds"}}
NO_INPUT = {"id": "no-input"}
#: Rows that cannot be answered, because they have no id that a request could carry.
ODD_IDS = [None, 7, "", [], {}, "a\nb", "a\0b", "\ud800", "x" * (MAX_ID_LENGTH + 1)]
STRAYS = [{}, None, "a", 7, [], [JOB], {"input": {}}, *({"id": each} for each in ODD_IDS)]


@pytest.mark.parametrize("stray", STRAYS, ids=ascii)
def test_a_row_without_a_usable_id_costs_itself_alone(stray: Any) -> None:
    assert usable_jobs([stray, JOB]) == [JOB]


def test_a_field_that_the_sdk_cannot_keep_costs_itself_alone() -> None:
    reserved = {"self": 1, "__class__": 2, "__dict__": 3}
    with pytest.raises(TypeError):
        worker_state.Job(**JOB, **reserved)
    odd = {"": 1, "a b": 2, "\ud800": 3, "_": 4}
    (job,) = usable_jobs([{**JOB, **odd, **reserved}])
    assert job == {**JOB, **odd}
    assert hash(worker_state.Job(**job))


@pytest.mark.parametrize("row", [JOB, {**NO_INPUT, "batchId": "b", "webhook": None, "a b": 1}])
def test_any_other_row_reaches_the_handler_as_it_is(row: dict[str, Any]) -> None:
    assert usable_jobs([row]) == [row]


@pytest.mark.parametrize("count", [1, 8])
async def test_a_job_without_input_is_taken_alone_and_in_a_batch(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The handler answers it; the SDK would drop it when it comes alone."""

    async def take(request: web.Request) -> web.Response:
        return web.json_response([NO_INPUT] if "batch" in request.path else NO_INPUT)

    app = web.Application()
    app.add_routes([web.get(f"/{name}/w1", take) for name in ("job-take", "job-take-batch")])
    async with TestServer(app) as server, ClientSession() as session:
        monkeypatch.setattr(rp_job, "JOB_GET_URL", f"{server.make_url('/job-take/w1')}?gpu=double")
        assert await guarded(rp_job.get_job)(session, count) == [NO_INPUT]


async def test_the_sdk_still_needs_the_guard() -> None:
    """If this fails, the SDK survives an empty row: remove `api.taking`."""
    scaler = rp_scale.JobScaler({"handler": None})
    scaler.jobs_queue = asyncio.Queue()
    scaler.jobs_queue.put_nowait({})
    with pytest.raises(KeyError, match="id"):
        await scaler.run_jobs(None)
