"""Whatever a caller sends, the answer is a typed error that helps, and no value is repeated."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.actions import ACTIONS
from api.parsing import parse_action
from stores.local.store import LocalStore
from tests.kit import Caller

SECRET = "hunter2-do-not-repeat"  # what must never come back
BUCKET = {"bucketName": "mine", "accessSecret": SECRET}


@pytest.fixture
def call(tmp_path):
    return Caller(LocalStore(tmp_path / "store"), tmp_path)


def error_of(reply):
    assert reply.keys() == {"error"}
    return reply["error"]


@pytest.mark.parametrize("request_", [None, [], "start", 7, {}, {"action": 3}, {"action": None}])
async def test_a_request_that_names_no_action_is_told_the_actions(tmp_path, request_):
    handler = Caller(LocalStore(tmp_path / "store"), tmp_path).handler
    error = json.loads((await handler({"id": "j", "input": request_}))["error"])
    assert error["code"] == "invalid_request"
    assert not error["retryable"]


async def test_a_job_without_input_is_an_invalid_request(call):
    assert json.loads((await call.handler({"id": "j"}))["error"])["code"] == "invalid_request"


async def test_an_unknown_action_is_told_the_nearest_one(call):
    error = error_of(await call("proces_status", process_id="p"))
    assert error["code"] == "unknown_action"
    assert "did you mean `process_status`?" in error["message"]


async def test_a_word_of_an_actions_name_is_told_that_action(call):
    assert "did you mean `process_status`?" in error_of(await call("status"))["message"]


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"policy": {"ttl": 1}}, "`policy` stands beside `input`, not in it"),
        ({"webhook": "https://a"}, "`webhook` stands beside `input`, not in it"),
        ({"s3Config": BUCKET}, "`s3Config` is not supported"),
        ({"steps": 3}, "`steps` is a param of `sleep`: put it into `params`"),
    ],
)
async def test_a_field_in_the_wrong_place_is_told_the_right_one(call, field, says):
    assert says in error_of(await call("start", kind="sleep", **field))["message"]


async def test_a_bucket_of_the_callers_own_is_refused_before_anything_is_done(call):
    start = {"action": "start", "kind": "sleep", "process_id": "p"}
    reply = await call.handler({"id": "j", "input": start, "s3Config": BUCKET})
    error = json.loads(reply["error"])
    assert error["code"] == "invalid_request"
    assert "`s3Config` is not supported" in error["message"]
    assert SECRET not in str(reply)
    assert (await call("process_status", process_id="p"))["status"] == "not_found"


@pytest.mark.parametrize("empty", [None, {}])
async def test_an_empty_bucket_setting_is_ignored(call, empty):
    reply = await call.handler({"id": "j", "input": {"action": "kinds"}, "s3Config": empty})
    assert "error" not in reply


async def test_an_unknown_kind_is_told_the_nearest_one(call):
    error = error_of(await call("start", kind="slep"))
    assert error["code"] == "unknown_kind"
    assert "did you mean `sleep`?" in error["message"]


async def test_an_unknown_field_is_told_the_nearest_one(call):
    error = error_of(await call("process_status", procces_id="p"))
    assert "did you mean `process_id`?" in error["message"]


async def test_an_unknown_field_inside_another_is_told_the_nearest_one_there(call):
    error = error_of(await call("upload", folder="f", files=[{"path": "a", "sze": 3}]))
    assert "`files.0.sze`; did you mean `size`?" in error["message"]
    error = error_of(await call("start", kind="sleep", inputs={"x": {"sorce": "folder:f"}}))
    assert "did you mean `source`?" in error["message"]


async def test_a_fault_of_several_fields_names_them_and_no_empty_one(call):
    error = error_of(await call("delete", process_id="p", confirm="q"))
    assert error["message"] == "`confirm` must repeat what is to be deleted"


async def test_an_unknown_param_is_told_the_nearest_one(call):
    error = error_of(await call("start", kind="sleep", params={"secconds": 1}))
    assert "`params.secconds`" in error["message"]
    assert "did you mean `seconds`?" in error["message"]


async def test_a_bad_value_is_told_its_field_and_its_limit(call):
    error = error_of(await call("start", kind="sleep", params={"steps": 0}))
    assert "`params.steps`" in error["message"]
    assert "greater than or equal to 1" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"action": SECRET},
        {"action": "process_status", "process_id": f"../{SECRET}"},
        {"action": "process_status", "process_id": "p", "wait_seconds": SECRET},
        {"action": "start", "kind": "sleep", "params": {"seconds": SECRET}},
        {"action": "start", "kind": "sleep", "labels": {"a": [SECRET]}},
        {"action": "start", "kind": "sleep", "on_busy": SECRET},
        {"action": "start", "kind": "train_diffusion", "params": {"dataset": f"/{SECRET}"}},
        {"action": "processes", "status": SECRET},
        {"action": "download", "process_id": "p", "expires_in": SECRET},
    ],
)
async def test_no_error_repeats_a_value(call, fields):
    """The name of an action is repeated, since that is what has to be mended; nothing else is."""
    error = error_of(await call(**fields) if "action" not in fields else await _send(call, fields))
    if fields["action"] != SECRET:
        assert SECRET not in error["message"]
    assert error["message"]


async def _send(call, fields):
    reply = await call.handler({"id": "j", "input": fields})
    return {"error": json.loads(reply["error"])}


BAD_IDS = ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "a\0", "a\n", "-a", " a", "ä", "x" * 129, 7]


@pytest.mark.parametrize("process_id", BAD_IDS, ids=ascii)
@pytest.mark.parametrize("action", ["process_status", "cancel", "download", "start"])
async def test_an_id_outside_the_allowed_form_is_refused(call, action, process_id):
    fields = {"kind": "sleep"} if action == "start" else {}
    error = error_of(await call(action, process_id=process_id, **fields))
    assert error["code"] == "invalid_request"
    assert "process_id" in error["message"]


@pytest.mark.parametrize("path", ["../../record.json", "/etc/passwd", "a/../../b", "%2e%2e/x"])
async def test_a_path_can_only_name_an_artifact(call, path):
    await call.start("p", artifacts=1)
    error = error_of(await call("download", process_id="p", path=path))
    assert error["code"] in ("unknown_artifact", "invalid_request")


async def test_a_job_id_that_is_no_process_id_is_refused_and_nothing_begins(call):
    error = error_of(await call("start", "../../x", kind="sleep"))
    assert error["code"] == "invalid_request"
    assert (await call("processes"))["processes"] == []


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.text()
                | st.sampled_from(
                    ["process_id", "kind", "params", "limit", "cursor", "labels", "detach"]
                ),
                inner,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from([*ACTIONS, "nonsense"]),
)
async def test_nothing_gets_a_traceback_out_of_the_worker(call, noise, action):
    fields = noise if isinstance(noise, dict) else {"process_id": noise}
    reply = await call.handler({"id": "j", "input": {**fields, "action": action}})
    if "error" in reply:
        error = json.loads(reply["error"])
        assert error["code"] != "internal_error"
        assert "Traceback" not in error["message"]


def test_every_action_of_the_table_parses_its_smallest_request():
    smallest = {
        "start": {"kind": "sleep"},
        "processes": {},
        "kinds": {},
        "health": {},
        "metrics": {},
        "bulk_download": {"process_ids": ["p"]},
        "download_file": {"process_id": "p", "path": "a"},
        "upload": {"folder": "f", "complete": True},
        "list_files": {},
        "delete": {"process_id": "p", "confirm": "p"},
    }
    for name in ACTIONS:
        fields = smallest.get(name, {"process_id": "p"})
        assert parse_action({"action": name, **fields}).action == name
