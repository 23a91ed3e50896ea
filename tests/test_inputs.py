"""What `inputs` of a start bring into the job's folder: from folders, processes, keys, the web."""

import asyncio
import hashlib
import io
import zipfile

import pytest

from jobs import JOBS, runner
from tests import input_jobs
from tests.crowd import on_every_store, until
from tests.web_server import Reply, WebServer


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _knows_the_kind(monkeypatch):
    """Worker and child know the kind that tells what it was given."""
    monkeypatch.setitem(JOBS, "show_inputs", input_jobs.KINDS["show_inputs"])
    monkeypatch.setattr(runner, "ENTRY", (input_jobs.__file__,))


@pytest.fixture
def web():
    """A private host that answers with what its name in the URL says."""
    with WebServer(lambda asked: Reply(body=asked.path.partition("?")[0].encode())) as server:
        yield server


def allowing(web):
    return {"allowed_hosts": f"127.0.0.1:{web.port}"}


async def given(worker, process_id="p", **inputs):
    """The reply of a job that was started with these inputs."""
    fields = {name: each for name, each in inputs.items() if name not in ("params", "job_id")}
    return await worker(
        "start", kind="show_inputs", process_id=process_id, inputs=fields,
        params=inputs.get("params", {}),
    )  # fmt: skip


async def folder_of(crowd, name, **files):
    """An input folder, complete."""
    for path, data in files.items():
        await crowd.store.put(f"inputs/{name}/{path}", data)
    reply = await crowd.worker()("upload", folder=name, complete=True)
    assert reply["complete"], reply


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# ---- where they come from


@on_every_store
async def test_a_folder_is_a_folder_in_the_job(crowd):
    await folder_of(crowd, "f", a=b"one", b=b"two")
    reply = await given(crowd.worker(), faces="folder:f")
    assert reply["result"] == {"faces/a": sha256(b"one"), "faces/b": sha256(b"two")}


@on_every_store
async def test_one_file_of_a_folder_is_a_file_in_the_job(crowd):
    await folder_of(crowd, "f", a=b"one", b=b"two")
    reply = await given(crowd.worker(), face="folder:f/a")
    assert reply["result"] == {"face": sha256(b"one")}


@on_every_store
async def test_what_a_process_made_is_what_another_one_works_on(crowd):
    worker = crowd.worker()
    await worker.start("maker", artifacts=2, artifact_bytes=3)
    reply = await given(worker, all="process:maker", one={"source": "process:maker/artifact-1.bin"})
    zeros = sha256(bytes(3))
    assert reply["result"] == {
        "all/artifact-1.bin": zeros, "all/artifact-2.bin": zeros, "one": zeros,
    }  # fmt: skip


@on_every_store
async def test_a_key_is_what_the_operator_put_beside_the_workers_own(crowd):
    await crowd.store.put("datasets/one.txt", b"one")
    reply = await given(crowd.worker(), data="key:datasets/one.txt")
    assert reply["result"] == {"data": sha256(b"one")}


async def test_a_url_is_fetched(crowd, web):
    worker = crowd.worker(**allowing(web))
    reply = await given(worker, data=f"{web.url}/one.txt?token=secret")
    assert reply["result"] == {"data": sha256(b"/one.txt")}


async def test_an_archive_is_unpacked_on_request_and_else_left_whole(crowd):
    data = zipped(a=b"one", **{"deep/b": b"two"})
    await crowd.store.put("sets/data.zip", data)
    reply = await given(
        crowd.worker(), open={"source": "key:sets/data.zip", "unpack": True},
        closed="key:sets/data.zip",
    )  # fmt: skip
    assert reply["result"] == {
        "closed": sha256(data), "open/a": sha256(b"one"), "open/deep/b": sha256(b"two"),
    }  # fmt: skip


async def test_an_empty_file_is_a_file(crowd):
    await folder_of(crowd, "f", a=b"")
    assert (await given(crowd.worker(), x="folder:f/a"))["result"] == {"x": sha256(b"")}


# ---- what cannot be had fails the process, before a child is begun


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("folder:nobody", "input_missing"),
        ("folder:f/nothing", "input_missing"),
        ("folder:unfinished", "input_missing"),
        ("process:nobody", "input_missing"),
        ("process:failed", "input_missing"),
        ("process:made/nothing", "input_missing"),
        ("key:nothing", "input_missing"),
        ({"source": "key:there", "sha256": sha256(b"other")}, "input_mismatch"),
        ({"source": "folder:f", "sha256": sha256(b"other")}, "input_mismatch"),
        ({"source": "folder:f", "unpack": True}, "input_mismatch"),
        ({"source": "key:there", "unpack": True}, "input_broken"),
    ],
)
async def test_an_input_that_cannot_be_had_fails_the_process(crowd, source, code):
    """Trap 19: nothing is computed from nothing."""
    await folder_of(crowd, "f", a=b"one", b=b"two")
    await crowd.store.put("inputs/unfinished/a", b"half of it")
    await crowd.store.put("there", b"bytes")
    worker = crowd.worker()
    await worker.start("failed", artifacts=1, fail_at=1)
    await worker.start("made", artifacts=1)
    reply = await given(worker, x=source)
    assert reply["status"] == "failed"
    assert reply["failure"]["code"] == reply["error"]["code"] == code
    assert "'x'" in reply["failure"]["message"]
    assert (reply["started_at"] is None) == (code != "input_broken")
    assert reply["files"] == []


async def test_an_input_of_a_process_that_still_runs_is_not_taken_half(crowd):
    worker = crowd.worker(slots=2)
    running = await worker.running("maker", artifacts=1)
    reply = await given(worker, x="process:maker")
    assert reply["failure"]["code"] == "input_missing"
    assert "running" in reply["failure"]["message"]
    await worker("cancel", process_id="maker")
    await running


async def test_a_file_that_was_changed_since_its_folder_was_completed_is_noticed(crowd):
    data = b"one"
    await crowd.store.put("inputs/f/a", data)
    files = [{"path": "a", "size": 3, "sha256": sha256(data)}]
    await crowd.worker()("upload", folder="f", files=files, complete=True)
    await crowd.store.put("inputs/f/a", b"two")
    reply = await given(crowd.worker(), x="folder:f")
    assert reply["failure"]["code"] == "input_mismatch"


async def test_a_file_that_is_also_a_folder_is_refused(crowd):
    """An S3 bucket may hold both; a disk cannot."""
    manifest = (
        b'{"folder":"f","completed_at":"2026-01-01T00:00:00Z","nonce":"n","files":['
        b'{"path":"a","size":1,"modified":0},{"path":"a/b","size":1,"modified":0}]}'
    )
    await crowd.store.put("inputs/f/.worker/manifest.json", manifest)
    await crowd.store.put("inputs/f/a", b"x")
    reply = await given(crowd.worker(), x="folder:f")
    assert reply["failure"]["code"] in ("input_refused", "input_missing")


async def test_more_than_the_limit_is_not_even_begun(crowd):
    await folder_of(crowd, "f", a=b"12345", b=b"12345")
    worker = crowd.worker(max_input_bytes=9)
    reply = await given(worker, x="folder:f")
    assert reply["failure"]["code"] == "input_too_large"
    assert worker.store.asked("download") == []


async def test_the_limit_counts_what_comes_from_the_web_as_it_comes(crowd, web):
    worker = crowd.worker(max_input_bytes=9, **allowing(web))
    reply = await given(worker, x=f"{web.url}/1234", y=f"{web.url}/6789")
    assert reply["failure"]["code"] == "input_too_large"


# ---- refused at once


@pytest.mark.parametrize(
    "source",
    [
        "", "x", "folder:", "folder:/etc", "folder:f/", "folder:f/../g", "folder:../f", "process:",
        "process:a b", "process:p//x", "key:", "key:/a", "key:../a", "key:a/../b", "key:a\0b",
        "key:processes/p/record.json", "key:index/x", "key:inputs/f/a", "key:locks/x",
        "file:///etc/passwd", "ftp://a/b", "gopher://a", "data:text/plain,hi", "s3://bucket/key",
        "//host/path", "https:", "https://", "javascript:alert(1)", "x" * 5000,
    ],
)  # fmt: skip
async def test_a_source_in_no_known_form_is_refused_at_once(crowd, source):
    worker = crowd.worker()
    reply = await given(worker, x=source)
    assert reply["error"]["code"] in ("invalid_request", "input_refused")
    assert "x" in reply["error"]["message"]
    assert (await worker("process_status", process_id="p"))["status"] == "not_found"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@example.com/a", "http://example.com/a", "https://127.0.0.1/a",
        "https://169.254.169.254/latest/meta-data", "https://[::1]/a", "https://[::ffff:7f00:1]/",
        "https://10.0.0.1/", "https://0x7f.1/", "https://2130706433/", "https://0177.0.0.1/",
        "https://localhost/", "https://localhost./",
    ],
)  # fmt: skip
async def test_a_url_that_leads_inside_is_refused(crowd, url):
    """At once if it can be told from the URL, else when its name was looked up."""
    reply = await given(crowd.worker(), x=url)
    assert reply["error"]["code"] == "input_refused"
    assert "secret" not in str(reply)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", ".hidden", "-x", "x" * 129])
async def test_an_input_has_a_plain_name(crowd, name):
    reply = await crowd.worker()("start", kind="show_inputs", inputs={name: "folder:f"})
    assert reply["error"]["code"] == "invalid_request"


# ---- what is kept and shown of them


async def test_the_query_of_a_url_is_stored_nowhere(crowd, web):
    worker = crowd.worker(**allowing(web))
    await given(worker, data=f"{web.url}/one.txt?token=secret")
    record = await crowd.record("p")
    assert record.inputs == {"data": f"{web.url}/one.txt?..."}
    scratch = worker.settings.scratch_dir
    for path in (path for path in scratch.rglob("*") if path.is_file()):
        assert b"token=secret" not in path.read_bytes()


async def test_a_start_with_other_inputs_is_another_start(crowd):
    await folder_of(crowd, "f", a=b"one")
    worker = crowd.worker()
    await given(worker, x="folder:f")
    reply = await given(worker, y="folder:f")
    assert reply["error"]["code"] == "process_exists"


async def test_known_bytes_from_another_place_are_the_same_start(crowd):
    """A link that was made anew is not another request."""
    await crowd.store.put("one", b"x")
    await crowd.store.put("two", b"x")
    worker = crowd.worker()
    first = await given(worker, x={"source": "key:one", "sha256": sha256(b"x")})
    again = await given(worker, x={"source": "key:two", "sha256": sha256(b"x")})
    assert again["revision"] == first["revision"]


# ---- two processes, one download


async def test_an_input_that_two_processes_need_at_once_is_downloaded_once(crowd):
    await crowd.store.put("model", b"weights")
    worker = crowd.worker(slots=2)
    pause = worker.store.pause_before("download", "model")
    both = [asyncio.create_task(given(worker, name, m="key:model")) for name in ("p", "q")]
    await pause.reached.wait()
    await until(lambda: len(worker.store.asked("stat")) == 2)
    pause.go.set()
    for reply in await asyncio.gather(*both):
        assert reply["result"] == {"m": sha256(b"weights")}
    assert len(worker.store.asked("download", key="model")) == 1


async def test_a_job_that_spoils_its_inputs_spoils_nobody_elses(crowd):
    """Trap 20: what one user does to a file, another never sees."""
    await crowd.store.put("model", b"weights")
    worker = crowd.worker()
    for name in ("p", "q"):
        reply = await given(worker, name, m="key:model", params={"spoil": True})
        assert reply["result"] == {"m": sha256(b"weights")}
    assert len(worker.store.asked("download", key="model")) == 1


async def test_a_url_whose_content_changed_is_fetched_again(crowd, web):
    worker = crowd.worker(**allowing(web))
    for name, data in (("p", b"one"), ("q", b"two")):
        web.answer = lambda _, data=data: Reply(body=data)
        assert (await given(worker, name, x=f"{web.url}/a"))["result"] == {"x": sha256(data)}


# ---- while they travel


async def test_progress_shows_inputs_on_their_way_and_the_process_waits_as_queued(crowd):
    await folder_of(crowd, "f", **{f"n{number}": b"12345" for number in range(20)})
    worker = crowd.worker()
    pause = worker.store.pause_before("download", nth=15)
    starting = asyncio.create_task(given(worker, x="folder:f"))
    await pause.reached.wait()
    view = await worker.until("p", lambda view: view["progress"])
    assert view["status"] == "queued"
    assert view["progress"]["message"] == "bytes of the inputs"
    assert view["progress"]["total"] == 100
    pause.go.set()
    assert (await starting)["status"] == "completed"


async def test_inputs_travel_before_there_is_a_slot(crowd):
    await folder_of(crowd, "f", a=b"one")
    worker = crowd.worker(slots=1)
    running = await worker.running("first")
    starting = asyncio.create_task(given(worker, "second", x="folder:f"))
    await worker.until("second", lambda view: view["queue_position"] == 1)
    assert len(worker.store.asked("download")) == 1
    await worker("cancel", process_id="first")
    await running
    assert (await starting)["result"] == {"x/a": sha256(b"one")}


async def test_a_process_can_be_cancelled_while_its_inputs_travel(crowd):
    await folder_of(crowd, "f", a=b"one")
    worker = crowd.worker()
    pause = worker.store.pause_before("download")
    starting = asyncio.create_task(given(worker, x="folder:f"))
    await pause.reached.wait()
    assert (await worker("cancel", process_id="p"))["status"] == "cancelled"
    reply = await starting
    assert (reply["status"], reply["started_at"]) == ("cancelled", None)


async def test_a_store_that_is_away_for_a_while_does_not_fail_an_input(crowd):
    await folder_of(crowd, "f", a=b"one")
    worker = crowd.worker()
    worker.store.fail("download")
    worker.store.fail("get", ".worker/manifest.json")
    assert (await given(worker, x="folder:f"))["result"] == {"x/a": sha256(b"one")}


async def test_inputs_that_take_too_long_fail_the_process(crowd):
    await folder_of(crowd, "f", a=b"one")
    worker = crowd.worker(input_timeout_seconds=0.5)
    worker.store.fail("download", nth=None)
    reply = await given(worker, x="folder:f")
    assert reply["failure"]["code"] == "input_unreachable"
    assert reply["failure"]["retryable"]


async def test_an_attempt_elsewhere_fetches_its_inputs_again(crowd):
    await folder_of(crowd, "f", a=b"one")
    owner, heir = crowd.worker(), crowd.heir()
    pause = owner.store.pause_before("replace", "record.json", nth=2)
    owner.held.append(asyncio.create_task(given(owner, x="folder:f")))
    await pause.reached.wait()
    await owner.die()
    reply = await given(heir, x="folder:f")
    assert (reply["attempt"], reply["result"]) == (2, {"x/a": sha256(b"one")})
