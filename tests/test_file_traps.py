"""What sank an earlier system of this kind, one test for each: DESIGN section 10, 17 to 29.

About files. The first sixteen are in `test_traps.py`.
"""

import logging

import pytest

from child import runner
from jobs import JOBS
from records.manifest import artifact_key
from tests import input_jobs, servers
from tests.crowd import on_every_store
from tests.test_download import fetched


@pytest.fixture(autouse=True)
def _knows_the_kinds(monkeypatch):
    """Worker and child know the kind that writes what it is told to."""
    for name, job in input_jobs.KINDS.items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (input_jobs.__file__,))


async def written(worker, process_id, **params):
    return await worker("start", kind="write_files", process_id=process_id, params=params)


def contents(reply):
    return {file["path"]: fetched(file["url"]).decode() for file in reply["files"]}


async def test_trap_17_a_non_zero_exit_is_no_success(crowd):
    reply = await crowd.worker().start("p", exit_code=3)
    assert (reply["status"], reply["failure"]["code"]) == ("failed", "child_exited")
    assert (await crowd.record("p")).result is None


async def test_trap_18_a_failure_leaves_no_output_that_nobody_made(crowd):
    worker = crowd.worker()
    reply = await worker.start("p", fail_at=1)
    assert (reply["status"], reply["files"], reply["result"]) == ("failed", [], None)
    assert await servers.keys_of(crowd.store, artifact_key("p", 1, "")) == []


@pytest.mark.parametrize("inputs", [{}, {"faces": "folder:nobody"}], ids=["none", "unknown"])
async def test_trap_19_nothing_is_trained_on_nothing(crowd, inputs):
    reply = await crowd.worker()(
        "start", kind="train_diffusion", process_id="p", params={"dataset": "faces"}, inputs=inputs
    )
    assert reply["status"] == "failed"
    assert reply["failure"]["code"] in ("dataset_missing", "input_missing")
    assert reply["files"] == []


@on_every_store
async def test_trap_20_nobody_finds_another_users_files_among_his_own(crowd):
    """Not those of a process beside it, and not what somebody left on the same disk."""
    worker = crowd.worker(slots=2)
    scratch = worker.settings.scratch_dir
    scratch.mkdir(parents=True)
    (scratch / "stray.txt").write_text("somebody else's")
    one = await written(worker, "p", files={"mine.txt": "one", "../beside.txt": "not an output"})
    two = await written(worker, "q", files={"mine.txt": "two"})
    assert contents(one) == {"mine.txt": "one"}
    assert contents(two) == {"mine.txt": "two"}


async def test_trap_21_the_next_run_of_the_same_overwrites_nothing(crowd):
    worker = crowd.worker()
    replies = [await written(worker, name, files={"model": name}) for name in ("p", "q")]
    assert [contents(reply) for reply in replies] == [{"model": "p"}, {"model": "q"}]
    assert contents(await worker("download", process_id="p")) == {"model": "p"}


@on_every_store
async def test_trap_22_a_failed_upload_is_a_failed_process_and_the_rest_stays_reachable(crowd):
    worker = crowd.worker(upload_patience_seconds=0)
    worker.store.fail("upload", "b.txt", nth=None)
    reply = await written(worker, "p", files={"a.txt": "a", "b.txt": "b"})
    assert (reply["status"], reply["failure"]["code"]) == ("failed", "upload_failed")
    assert contents(reply) == {"a.txt": "a"}
    other = crowd.worker()
    assert contents(await other("download", process_id="p")) == {"a.txt": "a"}


@on_every_store
async def test_trap_23_foo_does_not_read_foobar(crowd):
    worker = crowd.worker()
    for name in ("foo", "foobar", "foo.bar"):
        await written(worker, name, files={"whose.txt": name})
        await crowd.store.put(f"inputs/{name}/whose.txt", name.encode())
    assert contents(await crowd.worker()("download", process_id="foo")) == {"whose.txt": "foo"}
    folder = await worker("list_files", folder="foo")
    assert [(file["path"], file["size"]) for file in folder["files"]] == [("whose.txt", 3)]
    removed = await worker("delete", folder="foo", confirm="foo")
    assert removed["deleted"]["objects"] == 1
    assert (await worker("list_files"))["folders"] == ["foo.bar", "foobar"]


@pytest.mark.parametrize("crowd", ["local", "ceph"], indirect=True)
@pytest.mark.parametrize("overwrite", [False, True])
async def test_trap_24_an_upload_wipes_nothing(crowd, overwrite):
    worker = crowd.worker()
    before = {"inputs/f/a.txt": b"mine", "inputs/f/deep/b.txt": b"mine too"}
    for key, data in before.items():
        await crowd.store.put(key, data)
    files = [{"path": "a.txt", "size": 5}, {"path": "c.txt", "size": 5}]
    await worker("upload", folder="f", files=files, overwrite=overwrite)
    refused = await worker("upload", folder="f", files=files, complete=True)
    assert refused["error"]["code"] == "upload_incomplete"
    for key, data in before.items():
        assert (await crowd.store.get(key)).data == data


@on_every_store
async def test_trap_25_two_files_with_one_basename_are_two_files(crowd):
    reply = await written(
        crowd.worker(), "p", files={"x.txt": "top", "a/x.txt": "in a", "b/x.txt": "in b"}
    )
    assert contents(reply) == {"x.txt": "top", "a/x.txt": "in a", "b/x.txt": "in b"}


@on_every_store
async def test_trap_26_a_token_among_the_params_is_stored_listed_and_logged_nowhere(crowd, caplog):
    caplog.set_level(logging.DEBUG)
    worker = crowd.worker()
    reply = await written(worker, "p", token="hunter2-secret", files={"a.txt": "a"})
    assert reply["status"] == "completed"
    for key in await servers.keys_of(crowd.store):
        assert b"hunter2" not in (await crowd.store.get(key)).data, key
    rows = await worker("processes")
    assert "hunter2" not in f"{reply} {rows} {caplog.text}"
    for path in worker.settings.scratch_dir.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path


@on_every_store
async def test_trap_27_no_file_of_the_worker_can_be_had(crowd, tmp_path):
    """Neither by a link among the outputs, nor by a path or a source that leads there."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the worker's own")
    links = {"file.txt": str(secret), "folder": str(tmp_path), "up": "../.."}
    worker = crowd.worker()
    reply = await written(worker, "p", files={"mine.txt": "mine"}, links=links)
    assert contents(reply) == {"mine.txt": "mine"}
    for path in (str(secret), "../../../secret.txt", "file.txt", "folder/secret.txt"):
        for action in ("download", "download_file"):
            refused = await worker(action, process_id="p", path=path)
            assert refused["error"]["code"] in ("invalid_request", "unknown_artifact")
    for source in (f"file://{secret}", f"key:{secret}", f"folder:{secret}"):
        refused = await worker("start", kind="show_inputs", inputs={"x": source})
        assert refused["error"]["code"] == "invalid_request"


async def test_trap_28_a_folder_that_only_begins_like_ours_is_not_ours(crowd):
    """`outputs-evil` lies beside `outputs`; a link into it leads out."""
    reply = await written(
        crowd.worker(),
        "p",
        files={"../outputs-evil/x.txt": "evil", "mine.txt": "mine"},
        links={"in.txt": "../outputs-evil/x.txt", "in": "../outputs-evil"},
    )
    assert contents(reply) == {"mine.txt": "mine"}


@pytest.mark.parametrize(
    "text",
    [
        "a: b\n- evil: true",
        "$(touch evil)",
        "`id`",
        '"}; DROP',
        "{{7*7}}",
        "!!python/object:x",
        "%s %n",
        "\u2028\u0000"[:1] + "end",
        "'; --",
    ],
)
async def test_trap_29_values_arrive_as_values_whatever_is_in_them(crowd, text):
    reply = await written(crowd.worker(), "p", files={"text.txt": text})
    assert contents(reply) == {"text.txt": text}
