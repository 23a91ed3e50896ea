"""Inputs that cannot be had: refused at once, or the process fails before its job begins."""

import asyncio
import errno
import json

import pytest
from pydantic import ValidationError

from attempts.fetching import Inputs
from attempts.own_files import OwnFolder
from inputs.errors import InputRefused
from inputs.sources import Input
from process_manager import ProcessManager
from records.keys import record_key
from records.record import Status
from storage import StorageMisconfigured, StorageUnavailable
from tests.crowd import on_every_store
from tests.web_server import Reply
from tests.with_inputs import allowing, folder_of, given, sha256
from worker.settings import Settings

pytestmark = pytest.mark.usefixtures("input_kinds")


async def rewritten(crowd, process_id, **changes):
    """A record that says something else than what happened."""
    record = await crowd.record(process_id)
    data = record.model_copy(update={**changes, "revision": record.revision + 1}).encode()
    await crowd.store.put(record_key(process_id), data)


def inputs_of(worker):
    parts = ProcessManager(worker.store, worker.settings).parts
    own = OwnFolder(parts.workplace, "attempt")
    own.make()
    return Inputs(parts.inputs, own, lambda _came, _known: None)


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
        ("key:shared/nothing", "input_missing"),
        ({"source": "key:shared/there", "sha256": sha256(b"other")}, "input_mismatch"),
        ({"source": "folder:f/a", "sha256": sha256(b"other")}, "input_mismatch"),
        ({"source": "process:made/artifact-1.bin", "sha256": sha256(b"other")}, "input_mismatch"),
        ({"source": "folder:f", "sha256": sha256(b"other")}, "input_mismatch"),
        ({"source": "folder:f", "unpack": True}, "input_mismatch"),
        ({"source": "key:shared/there", "unpack": True}, "input_broken"),
    ],
)
async def test_an_input_that_cannot_be_had_fails_the_process(crowd, source, code):
    """Trap 19: nothing is computed from nothing."""
    await folder_of(crowd, "f", a=b"one", b=b"two")
    await crowd.store.put("inputs/unfinished/a", b"half of it")
    await crowd.store.put("shared/there", b"bytes")
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


@pytest.mark.parametrize("path", ["", "/deep", "/deep/a"])
async def test_of_a_process_that_failed_only_single_artifacts_are_taken(crowd, path):
    """Trap 19: what it made may be half of what it was to make."""
    worker = crowd.worker()
    params = {"files": {"deep/a": "one"}}
    await worker("start", kind="write_files", process_id="maker", params=params)
    await rewritten(crowd, "maker", status=Status.FAILED)
    reply = await given(worker, x=f"process:maker{path}")
    if path == "/deep/a":
        assert reply["result"] == {"x": sha256(b"one")}
    else:
        assert reply["failure"]["code"] == "input_missing"
        assert "single artifacts" in reply["failure"]["message"]


async def test_an_artifact_of_a_process_that_was_interrupted_is_not_its_last_word(crowd):
    worker = crowd.worker()
    await worker.start("maker", artifacts=1)
    await rewritten(crowd, "maker", status=Status.INTERRUPTED)
    reply = await given(crowd.worker(), x="process:maker/artifact-1.bin")
    assert reply["failure"]["code"] == "input_missing"
    assert "interrupted" in reply["failure"]["message"]


async def test_a_file_that_was_changed_since_its_folder_was_completed_is_noticed(crowd):
    data = b"one"
    await crowd.store.put("inputs/f/a", data)
    files = [{"path": "a", "size": 3, "sha256": sha256(data)}]
    await crowd.worker()("upload", folder="f", files=files, complete=True)
    await crowd.store.put("inputs/f/a", b"two")
    reply = await given(crowd.worker(), x="folder:f")
    assert reply["failure"]["code"] == "input_mismatch"


@on_every_store
async def test_a_file_without_a_hash_is_known_by_its_size_and_time(crowd):
    await folder_of(crowd, "f", a=b"one", b=b"two")
    await crowd.store.put("inputs/f/a", b"another one")
    worker = crowd.worker()
    reply = await given(worker, "p", x="folder:f")
    assert reply["failure"]["code"] == "input_mismatch"
    assert "complete it again" in reply["failure"]["message"]
    assert worker.store.asked("download") == []
    await worker("upload", folder="f", complete=True)
    reply = await given(worker, "q", x="folder:f")
    assert reply["result"] == {"x/a": sha256(b"another one"), "x/b": sha256(b"two")}


async def test_a_folder_is_asked_about_once_however_many_inputs_are_of_it(crowd):
    await folder_of(crowd, "f", a=b"one", b=b"two")
    worker = crowd.worker()
    await given(worker, **{f"x{number}": "folder:f/a" for number in range(10)})
    assert len(worker.store.asked("get", key="inputs/f/")) == 1
    assert len(worker.store.asked("list", key="inputs/f/")) == 2  # before they travel, and after


async def test_files_that_prove_themselves_are_not_listed(crowd):
    await crowd.store.put("inputs/f/a", b"one")
    files = [{"path": "a", "size": 3, "sha256": sha256(b"one")}]
    await crowd.worker()("upload", folder="f", files=files, complete=True)
    worker = crowd.worker()
    assert (await given(worker, x="folder:f"))["result"] == {"x/a": sha256(b"one")}
    assert worker.store.asked("list", key="inputs/f/") == []


async def test_a_folder_that_is_changed_while_it_travels_is_noticed(crowd):
    await folder_of(crowd, "f", a=b"one", b=b"two")
    worker = crowd.worker()
    pause = worker.store.pause_before("download", "inputs/f/b")
    starting = asyncio.create_task(given(worker, x="folder:f"))
    await pause.reached.wait()
    await crowd.store.put("inputs/f/b", b"TWO")
    pause.go.set()
    assert (await starting)["failure"]["code"] == "input_mismatch"


async def test_a_file_that_is_also_a_folder_is_refused(crowd):
    """An S3 bucket may hold both; a disk cannot."""
    row = {"size": 1, "sha256": sha256(b"x"), "modified": 0}
    rows = [{"path": "a", **row}, {"path": "a/b", **row}]
    manifest = {"folder": "f", "completed_at": "2026-01-01T00:00:00Z", "nonce": "n", "files": rows}
    await crowd.store.put("inputs/f/.worker/manifest.json", json.dumps(manifest).encode())
    reply = await given(crowd.worker(), x="folder:f")
    assert reply["failure"]["code"] == "input_refused"
    assert "'x/a'" in reply["failure"]["message"]


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


async def test_the_limit_counts_unfinished_files_of_the_web_together(crowd, web):
    """None of them is too large, and one of them never ends."""
    mebi = 1 << 20
    answers = {
        "/slow": Reply(body=bytes(3 * mebi), silent_after=2 * mebi),
        "/quick": Reply(body=bytes(2 * mebi)),
    }
    web.answer = lambda asked: answers[asked.path]
    limits = {"max_input_bytes": 3 * mebi, "input_timeout_seconds": 10}
    worker = crowd.worker(**limits, **allowing(web))
    reply = await given(worker, x=f"{web.url}/slow", y=f"{web.url}/quick")
    assert reply["failure"]["code"] == "input_too_large"


async def test_a_key_that_is_denied_fails_the_process_with_what_to_mend(crowd, monkeypatch):
    """To wait for that would only lose the sentence."""
    worker = crowd.worker()

    async def denied(_key):
        raise StorageMisconfigured("allow this key s3:GetObject")

    monkeypatch.setattr(worker.store, "stat", denied)
    reply = await given(worker, x="key:shared/there")
    assert reply["failure"]["code"] == "storage_misconfigured"
    assert "'x'" in reply["failure"]["message"]
    assert "s3:GetObject" in reply["failure"]["message"]


async def test_a_disk_that_is_full_is_not_taken_for_a_store_that_is_away(crowd, monkeypatch):
    """A store in a folder says the one when it means the other."""
    await crowd.store.put("shared/there", b"bytes")
    worker = crowd.worker(input_timeout_seconds=10)

    async def full(*_, **__):
        raise StorageUnavailable("full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker.store, "download", full)
    reply = await given(worker, x="key:shared/there")
    assert reply["failure"]["code"] == "input_not_stored"
    assert "No space left" in reply["failure"]["message"]


# ---- refused at once


@pytest.mark.parametrize("key", ["there", "shared", "sharedness/x", "other/shared/x"])
async def test_a_key_that_the_operator_did_not_open_is_refused_at_once(crowd, key):
    """With an empty prefix the whole bucket would be anybody's."""
    await crowd.store.put(key, b"bytes")
    worker = crowd.worker()
    reply = await given(worker, x=f"key:{key}")
    assert reply["error"]["code"] == "input_refused"
    assert "WORKER_INPUT_KEYS" in reply["error"]["message"]
    assert (await worker("process_status", process_id="p"))["status"] == "not_found"


async def test_a_key_is_judged_again_by_the_worker_that_fetches_it(crowd):
    """It may not be the one that took the request, and its operator may have thought again."""
    worker = crowd.worker(input_keys="models/")
    with pytest.raises(InputRefused, match="WORKER_INPUT_KEYS"):
        await inputs_of(worker).bring({"x": Input(source="key:shared/there")})
    assert worker.store.calls == []


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("shared", "ends in `/`"),
        ("/shared/", "ends in `/`"),
        ("/", "ends in `/`"),
        ("a/../b/", "`..`"),
        ("a//b/", "empty"),
        ("shared/, x", "ends in `/`"),
        ("processes/", "the worker's own"),
        ("shared/,inputs/f/", "the worker's own"),
    ],
)
def test_what_the_operator_cannot_open(keys, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Settings(input_keys=keys)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x",
        "folder:",
        "folder:/etc",
        "folder:f/",
        "folder:f/../g",
        "folder:../f",
        "process:",
        "process:a b",
        "process:p//x",
        "key:",
        "key:/a",
        "key:../a",
        "key:a/../b",
        "key:a\0b",
        "key:processes/p/record.json",
        "key:index/x",
        "key:inputs/f/a",
        "key:locks/x",
        "file:///etc/passwd",
        "ftp://a/b",
        "gopher://a",
        "data:text/plain,hi",
        "s3://bucket/key",
        "//host/path",
        "https:",
        "https://",
        "javascript:alert(1)",
        "x" * 5000,
    ],
)
async def test_a_source_in_no_known_form_is_refused_at_once(crowd, source):
    worker = crowd.worker()
    reply = await given(worker, x=source)
    assert reply["error"]["code"] in ("invalid_request", "input_refused")
    assert "x" in reply["error"]["message"]
    assert (await worker("process_status", process_id="p"))["status"] == "not_found"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@example.com/a",
        "http://example.com/a",
        "https://127.0.0.1/a",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a",
        "https://[::ffff:7f00:1]/",
        "https://10.0.0.1/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://localhost/",
        "https://localhost./",
    ],
)
async def test_a_url_that_leads_inside_is_refused(crowd, url):
    """At once if it can be told from the URL, else when its name was looked up."""
    reply = await given(crowd.worker(), x=url)
    assert reply["error"]["code"] == "input_refused"
    assert "secret" not in str(reply)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0", ".hidden", "-x", "x" * 129])
async def test_an_input_has_a_plain_name(crowd, name):
    reply = await crowd.worker()("start", kind="show_inputs", inputs={name: "folder:f"})
    assert reply["error"]["code"] == "invalid_request"
