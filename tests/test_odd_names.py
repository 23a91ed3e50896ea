"""Files whose names no key can hold: stored, shown, downloaded, and given to the next job."""

from __future__ import annotations

import asyncio
import os

import pytest

from child import runner
from child.names import shown
from jobs import JOBS
from tests import odd_files_jobs
from tests.crowd import on_every_store
from tests.test_download import fetched
from tests.test_names import ODD
from tests.test_upload import announced, complete, send_chunks

NAMES = [*ODD.values(), b"ok.png", b"sub/caf\xe9/a b.png"]
PATHS = [shown(os.fsdecode(name)) for name in NAMES]


@pytest.fixture(autouse=True)
def _knows_the_kinds(monkeypatch):
    for name, job in odd_files_jobs.KINDS.items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (odd_files_jobs.__file__,))


async def made(worker, names):
    params = {"names": [name.hex() for name in names]}
    return await worker("start", kind="lay", process_id="p", params=params)


@on_every_store
async def test_every_output_comes_back_by_its_name(crowd):
    reply = await made(crowd.worker(), NAMES)
    assert (reply["status"], reply["artifacts"]["refused"]) == ("completed", [])
    other = crowd.worker()
    files = (await other("download", process_id="p"))["files"]
    assert {file["path"] for file in files} == set(PATHS)
    assert {file["path"]: fetched(file["url"]) for file in files} == dict(
        zip(PATHS, NAMES, strict=True)
    )
    for path in PATHS:
        [file] = (await other("download", process_id="p", path=path))["files"]
        assert file["filename"] == path.rpartition("/")[2]


async def test_the_outputs_of_a_process_reach_the_next_job_under_their_names(crowd):
    worker = crowd.worker()
    await made(worker, NAMES)
    params, inputs = {"named": "data"}, {"data": "process:p"}
    reply = await worker("start", kind="lay", process_id="q", params=params, inputs=inputs)
    assert sorted(reply["result"]) == sorted(name.hex() for name in NAMES)


async def test_a_folder_is_brought_and_completed_under_odd_names(crowd):
    worker = crowd.worker()
    for path in PATHS:
        await send_chunks(worker, "f", path, b"abc")
    files = [{"path": path, "size": 3} for path in PATHS]
    assert (await complete(worker, "f", files))["count"] == len(PATHS)
    assert (await complete(worker, "f", []))["count"] == len(PATHS)
    params, inputs = {"named": "data"}, {"data": "folder:f"}
    reply = await worker("start", kind="lay", process_id="q", params=params, inputs=inputs)
    assert sorted(reply["result"]) == sorted(name.hex() for name in NAMES)
    for path in PATHS:
        removed = await worker("delete", folder="f", path=path, confirm=path)
        assert "deleted" in removed, (path, removed)


async def test_a_checkpoint_keeps_the_names_of_its_files(crowd, tmp_path):
    worker, go_on = crowd.worker(), tmp_path / "go on"
    files = {f"checkpoints/c\u3000/{name}": "mine" for name in ("a\u202fb", "写\\", "ok")}
    params = {"files": files, "checkpoint": "c\u3000", "waits_for": str(go_on)}
    task = asyncio.create_task(worker("start", kind="lay", process_id="p", params=params))
    await worker.seen("p", "running", step=1)
    await worker.runs()[0].uploads.checkpoints_stored()
    [checkpoint] = (await crowd.record("p")).checkpoints
    assert {file.path for file in checkpoint.files} == {
        name.removeprefix("checkpoints/") for name in files
    }
    go_on.touch()
    await task


async def test_a_refused_upload_names_the_file_and_the_reason(crowd):
    files = [*announced(a=b"1"), {"path": "a\0b", "size": 1}]
    reply = await crowd.worker()("upload", folder="f", files=files)
    assert "`files.1.path`" in reply["error"]["message"]
    assert "NUL" in reply["error"]["message"]
