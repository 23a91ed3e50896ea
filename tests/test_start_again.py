"""A start that names a process and nothing else: the request is read back from the record."""

import asyncio

import pytest

from api.actions import StartAction
from api.parsing import InvalidRequest, parse_action
from api.starts import CannotRepeat, Starts
from programs.declaration import Programs
from records.record import GivenInput
from tests.crowd import on_every_store
from tests.kit import settings
from tests.test_index import record_of
from worker.redaction import MASK, MASKED_BY_PYDANTIC, Redactor

DIGEST = "ab" * 32


@on_every_store
async def test_the_id_alone_resumes_a_process_with_its_own_request(crowd):
    first = crowd.worker()
    request = {
        "kind": "sleep",
        "params": {"steps": 40, "seconds": 8, "checkpoint_every": 1},
        "labels": {"user": "7"},
        "timeout_seconds": 600,
    }
    start = asyncio.create_task(first("start", process_id="p", **request))
    await crowd.record_when("p", lambda record: record.checkpoints)
    await first.manager.drain()
    start.cancel()
    view = await crowd.worker()("start", process_id="p")
    assert (view["status"], view["attempt"]) == ("completed", 2)
    assert view["result"]["resumed_from"] >= 1
    assert view["labels"] == {"user": "7"}
    assert (await crowd.record("p")).timeout_seconds == 600
    assert (await crowd.worker()("start", process_id="p"))["revision"] == view["revision"]


async def test_the_id_alone_follows_a_process_that_runs_elsewhere(crowd):
    owner, other = crowd.worker(), crowd.worker()
    start = await owner.running("p", seconds=1, steps=10)
    assert (await other("start", process_id="p"))["attempt"] == 1
    assert (await start)["status"] == "completed"


async def test_the_id_alone_resumes_an_archive(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    await worker("bulk_download", process_ids=["p"], archive=True, process_id="a")
    assert (await worker("start", process_id="a"))["status"] == "completed"


async def test_the_id_alone_of_no_process_starts_nothing(crowd):
    reply = await crowd.worker()("start", process_id="p")
    assert reply["error"]["code"] == "unknown_process"


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"process_id": "p", "params": {"steps": 3}},
        {"process_id": "p", "inputs": {"a": "folder:a"}},
        {"process_id": "p", "labels": {"user": "7"}},
        {"process_id": "p", "timeout_seconds": 5},
    ],
)
def test_a_start_names_a_kind_or_a_process_alone(request_):
    with pytest.raises(InvalidRequest, match=r"`kind` is missing.*`process_id` alone"):
        parse_action({"action": "start", **request_})


# ---- what the record holds


def again(record, tmp_path):
    action = StartAction(action="start", process_id=record.process_id)
    return Starts(settings(tmp_path), Redactor(), Programs({})).again(record, action, {})


def test_inputs_are_asked_for_as_they_were(tmp_path):
    inputs = {
        "model": {"source": "https://example.com/model.zip", "sha256": DIGEST, "unpack": True},
        "images": {"source": "folder:faces"},
    }
    action = StartAction(action="start", kind="sleep", process_id="p", inputs=inputs)
    start = Starts(settings(tmp_path), Redactor(), Programs({})).of(action, {})
    record = record_of("p").model_copy(
        update={
            "kind": "sleep",
            "params": start.shown_params,
            "inputs": {
                name: GivenInput(**each.model_dump()) for name, each in start.inputs.items()
            },
            "request_hash": start.request_hash,
        }
    )
    repeated = again(record, tmp_path)
    assert repeated.inputs == start.inputs
    assert repeated.request_hash == start.request_hash


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"params": {"token": MASKED_BY_PYDANTIC}}, "`params.token`"),
        ({"params": {"hook": {"url": f"https://{MASK}@example.com"}}}, "`params.hook`"),
        ({"inputs": {"a": GivenInput(source="https://example.com/a?...")}}, "`inputs.a`"),
        ({"inputs": {"a": GivenInput(source=f"https://{MASK}@a.com/")}}, "`inputs.a`"),
    ],
)
def test_a_process_whose_record_leaves_out_secrets_is_not_repeated(tmp_path, changes, named):
    with pytest.raises(CannotRepeat, match=named):
        again(record_of("p").model_copy(update=changes), tmp_path)
