"""What `inputs` of a start bring into the job's folder: from folders, processes, keys, the web."""

import asyncio
import threading

import pytest

from attempts.own_files import OwnFolder
from attempts.restoring import restore
from attempts.uploads import checkpoint_key
from records.record import Checkpoint, CheckpointFile
from storage import StorageMisconfigured
from tests.crowd import on_every_store, until
from tests.images import zipped
from tests.web_server import Reply, WebServer
from tests.with_inputs import allowing, folder_of, given, sha256
from worker.workplace import Workplace

pytestmark = pytest.mark.usefixtures("input_kinds")


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
        "all/artifact-1.bin": zeros,
        "all/artifact-2.bin": zeros,
        "one": zeros,
    }


@on_every_store
async def test_a_key_is_what_the_operator_put_beside_the_workers_own(crowd):
    await crowd.store.put("shared/one.txt", b"one")
    reply = await given(crowd.worker(), data="key:shared/one.txt")
    assert reply["result"] == {"data": sha256(b"one")}


async def test_what_lies_where_the_operator_opened_it(crowd):
    await crowd.store.put("datasets/v2/one.txt", b"one")
    worker = crowd.worker(input_keys="models/, datasets/v2/")
    assert (await given(worker, x="key:datasets/v2/one.txt"))["result"] == {"x": sha256(b"one")}


async def test_a_url_is_fetched(crowd, web):
    worker = crowd.worker(**allowing(web))
    reply = await given(worker, data=f"{web.url}/one.txt?token=secret")
    assert reply["result"] == {"data": sha256(b"/one.txt")}


async def test_an_archive_is_unpacked_on_request_and_else_left_whole(crowd):
    data = zipped({"a": b"one", "deep/b": b"two"})
    await crowd.store.put("shared/data.zip", data)
    reply = await given(
        crowd.worker(),
        open={"source": "key:shared/data.zip", "unpack": True},
        closed="key:shared/data.zip",
    )
    assert reply["result"] == {
        "closed": sha256(data),
        "open/a": sha256(b"one"),
        "open/deep/b": sha256(b"two"),
    }


async def test_an_empty_file_is_a_file(crowd):
    await folder_of(crowd, "f", a=b"")
    assert (await given(crowd.worker(), x="folder:f/a"))["result"] == {"x": sha256(b"")}


# ---- what is kept and shown of them


async def test_the_query_of_a_url_is_stored_nowhere(crowd, web):
    worker = crowd.worker(**allowing(web))
    await given(worker, data=f"{web.url}/one.txt?token=secret")
    record = await crowd.record("p")
    assert record.inputs["data"].source == f"{web.url}/one.txt?..."
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
    await crowd.store.put("shared/one", b"x")
    await crowd.store.put("shared/two", b"x")
    worker = crowd.worker()
    first = await given(worker, x={"source": "key:shared/one", "sha256": sha256(b"x")})
    again = await given(worker, x={"source": "key:shared/two", "sha256": sha256(b"x")})
    assert again["revision"] == first["revision"]


# ---- two processes, one download


async def test_who_knows_a_hash_does_not_get_the_bytes_by_it(crowd, web):
    """What was deleted is gone, also for those who know what it was."""
    worker = crowd.worker(**allowing(web))
    await crowd.store.put("shared/a", b"secret")
    asked = {"source": "key:shared/a", "sha256": sha256(b"secret")}
    assert (await given(worker, x=asked))["status"] == "completed"
    await crowd.store.delete(["shared/a"])
    for name, source in (("q", "key:shared/a"), ("r", f"{web.url}/other")):
        reply = await given(worker, name, x={**asked, "source": source})
        assert reply["status"] == "failed"
        assert reply["failure"]["code"] in ("input_missing", "input_mismatch")


async def test_a_dead_link_is_nobody_elses(crowd, web):
    """Two callers who want the same bytes from two places do not share what becomes of one."""
    held, met = threading.Event(), threading.Event()

    def answer(asked):
        if asked.path == "/alive":
            return Reply(body=b"x")
        met.set()
        held.wait(10)
        return Reply(404)

    with WebServer(answer) as dead:
        worker = crowd.worker(slots=2, allowed_hosts="127.0.0.1")
        asked = {"sha256": sha256(b"x")}
        first = asyncio.create_task(given(worker, "p", x={"source": f"{dead.url}/dead", **asked}))
        await until(met.is_set)
        web.answer = lambda _: Reply(body=b"x")
        second = await given(worker, "q", x={"source": f"{web.url}/alive", **asked})
        held.set()
        assert second["result"] == {"x": sha256(b"x")}
        assert (await first)["failure"]["code"] == "input_missing"


async def test_a_link_that_was_signed_anew_leads_to_what_is_here_already(crowd, web):
    worker = crowd.worker(**allowing(web))
    for name in ("p", "q"):
        asked = {"source": f"{web.url}/a?signature={name}", "sha256": sha256(b"/a")}
        assert (await given(worker, name, x=asked))["result"] == {"x": sha256(b"/a")}
    assert len(web.asked) == 1


async def test_an_input_that_two_processes_need_at_once_is_downloaded_once(crowd):
    await crowd.store.put("shared/model", b"weights")
    worker = crowd.worker(slots=2)
    pause = worker.store.pause_before("download", "shared/model")
    both = [asyncio.create_task(given(worker, name, m="key:shared/model")) for name in ("p", "q")]
    await pause.reached.wait()
    await until(lambda: len(worker.store.asked("stat")) == 2)
    pause.go.set()
    for reply in await asyncio.gather(*both):
        assert reply["result"] == {"m": sha256(b"weights")}
    assert len(worker.store.asked("download", key="shared/model")) == 1


async def test_a_job_that_spoils_its_inputs_spoils_nobody_elses(crowd):
    """Trap 20: what one user does to a file, another never sees."""
    await crowd.store.put("shared/model", b"weights")
    worker = crowd.worker()
    for name in ("p", "q"):
        reply = await given(worker, name, m="key:shared/model", params={"spoil": True})
        assert reply["result"] == {"m": sha256(b"weights")}
    assert len(worker.store.asked("download", key="shared/model")) == 1


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


async def test_a_checkpoint_is_worth_waiting_for_even_where_the_store_refuses(
    crowd, monkeypatch, tmp_path
):
    """A key that was rotated may be mended; a job that begins anew has lost its work."""
    worker = crowd.worker()
    file = CheckpointFile(path="state", size=3, sha256=sha256(b"one"), modified_ns=1)
    checkpoint = Checkpoint(attempt=1, seq=1, files=(file,))
    await crowd.store.put(checkpoint_key("p", checkpoint, "state"), b"one")
    download, answers = worker.store.download, [StorageMisconfigured("the key is denied")]

    async def denied_once(*args, **options):
        if answers:
            raise answers.pop()
        return await download(*args, **options)

    monkeypatch.setattr(worker.store, "download", denied_once)
    own = OwnFolder(Workplace(tmp_path), "work")
    own.make()
    path, found = await restore(worker.store, "p", (checkpoint,), own)
    assert (path.read_bytes(), found) == (b"one", checkpoint)


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
