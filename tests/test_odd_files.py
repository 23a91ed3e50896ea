"""Files of a job that block, point elsewhere or cannot be stored: each costs itself alone.

Each attack is made by a real child on a real worker.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from pathlib import Path

import pytest

from attempts import log_writing as logs
from attempts import uploads
from child import runner
from jobs import JOBS
from records.manifest import artifact_key, manifest_key
from tests import input_jobs, odd_files_jobs
from tests.crowd import on_every_store, until
from tests.servers import keys_of
from tests.test_download import fetched

#: More pipes than files travel at a time.
MANY = 40


@pytest.fixture(autouse=True)
def _knows_the_kinds(monkeypatch):
    for name, job in (input_jobs.KINDS | odd_files_jobs.KINDS).items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (odd_files_jobs.__file__,))


@pytest.fixture
def secret(tmp_path):
    """A file of the worker's, on the same disk as the attempt's folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "secret"
    path.write_text("the worker's own")
    return path


async def laid(worker, process_id="p", **params):
    return await worker("start", kind="lay", process_id=process_id, params=params)


def begin(worker, process_id="p", **params):
    task = asyncio.create_task(laid(worker, process_id, **params))
    worker.held.append(task)
    return task


def contents(reply):
    return {file["path"]: fetched(file["url"]).decode() for file in reply["files"]}


def refused(reply):
    return {each["path"]: each["reason"] for each in reply["artifacts"]["refused"]}


def folder_of(worker):
    (run,) = worker.runs()
    return run._folder


async def nothing_else_is_stored(crowd, *paths):
    prefix = artifact_key("p", 1, "")
    return await keys_of(crowd.store, prefix) == [f"{prefix}{path}" for path in paths]


# ---- pipes


@on_every_store
async def test_pipes_in_place_of_offered_files_hold_up_neither_process_nor_worker(crowd, tmp_path):
    worker, go_on = crowd.worker(slots=2), tmp_path / "go on"
    names = [f"file-{number:02}" for number in range(MANY)]
    pause = worker.store.pause_before("upload", "file-", nth=None)
    files = {f"outputs/{name}": "mine" for name in ("good.txt", *names)}
    task = begin(worker, files=files, offers=names, waits_for=str(go_on))
    await pause.reached.wait()
    outputs = folder_of(worker) / "outputs"
    for name in names:
        os.mkfifo(outputs / "pipe")
        (outputs / "pipe").rename(outputs / name)
    pause.go.set()
    other = await laid(worker, "q", files={"outputs/other.txt": "other"})
    assert contents(other) == {"other.txt": "other"}
    go_on.touch()
    reply = await task
    assert (reply["status"], contents(reply)) == ("completed", {"good.txt": "mine"})
    assert refused(reply) == dict.fromkeys(names, "it is a pipe")


@on_every_store
async def test_pipes_left_among_the_outputs_are_listed(crowd):
    pipes = [f"pipe-{number:02}" for number in range(MANY)]
    reply = await laid(
        crowd.worker(),
        files={"outputs/good.txt": "good"},
        pipes=[f"outputs/{pipe}" for pipe in pipes],
        offers=pipes,
    )
    assert (reply["status"], contents(reply)) == ("completed", {"good.txt": "good"})
    assert refused(reply) == dict.fromkeys(pipes, "it is a pipe")


async def test_a_pipe_handed_over_as_a_checkpoint_is_not_waited_for(crowd):
    worker = crowd.worker()
    reply = await laid(
        worker,
        files={"outputs/good.txt": "good"},
        pipes=["sealed/000001"],
        seals="sealed/000001",
    )
    assert (reply["status"], contents(reply)) == ("completed", {"good.txt": "good"})
    assert (await crowd.record("p")).checkpoints == ()


# ---- outputs elsewhere


@on_every_store
@pytest.mark.parametrize("elsewhere", ["/etc", "/proc/self", "secret"])
async def test_outputs_that_are_a_link_store_nothing(crowd, secret, elsewhere):
    reply = await laid(
        crowd.worker(),
        moved=["outputs"],
        links={"outputs": str(secret.parent) if elsewhere == "secret" else elsewhere},
        offers=["hostname", "environ", "secret"],
    )
    assert (reply["status"], reply["files"]) == ("completed", [])
    assert refused(reply)["."] == "a folder of its path is a link, or is no folder"
    assert await nothing_else_is_stored(crowd)


@on_every_store
@pytest.mark.parametrize("entry", ["good.txt", "sub"])
async def test_what_is_swapped_for_a_link_between_check_and_read_is_not_followed(
    crowd, secret, tmp_path, entry
):
    """The file that was opened goes up; at the end the link is refused."""
    worker, go_on = crowd.worker(), tmp_path / "go on"
    path = "good.txt" if entry == "good.txt" else "sub/secret"
    pause = worker.store.pause_before("upload", path)
    task = begin(worker, files={f"outputs/{path}": "mine"}, offers=[path], waits_for=str(go_on))
    await pause.reached.wait()
    outputs = folder_of(worker) / "outputs"
    (outputs / entry).rename(outputs / "aside")
    (outputs / entry).symlink_to(secret if entry == "good.txt" else secret.parent)
    pause.go.set()
    await until(worker.runs()[0].uploads.files)
    files = (await worker("download", process_id="p"))["files"]
    assert [fetched(file["url"]) for file in files] == [b"mine"]
    go_on.touch()
    reply = await task
    assert (reply["status"], refused(reply)) == ("completed", {entry: "it is a link"})
    assert "the worker's own" not in str(contents(reply))


@on_every_store
async def test_hard_links_to_foreign_files_are_refused_and_to_own_ones_are_not(crowd, secret):
    reply = await laid(
        crowd.worker(),
        files={"outputs/a": "mine"},
        hard_links={"outputs/b": "outputs/a", "outputs/stolen": str(secret)},
        offers=["stolen"],
    )
    assert (reply["status"], contents(reply)) == ("completed", {"a": "mine", "b": "mine"})
    reason = "it is a hard link to a file outside of the attempt's folder"
    assert refused(reply) == {"stolen": reason}


async def test_an_offered_file_with_several_names_waits_for_the_end(crowd, tmp_path):
    """While the job lives, its names cannot be counted for each offer."""
    worker, go_on = crowd.worker(), tmp_path / "go on"
    task = begin(
        worker,
        files={"outputs/a": "mine", "outputs/last": "last"},
        hard_links={"outputs/b": "outputs/a"},
        offers=["a", "b", "last"],
        waits_for=str(go_on),
    )
    await worker.seen("p", "running", step=1)
    run = worker.runs()[0]
    await until(lambda: run.uploads.files() and not run.uploads._offers)
    assert [file.path for file in run.uploads.files()] == ["last"]
    assert run.uploads.summary().refused_count == 0
    go_on.touch()
    reply = await task
    assert contents(reply) == {"a": "mine", "b": "mine", "last": "last"}


@pytest.mark.parametrize(("target", "kept"), [("outputs/a", True), ("secret", False)])
async def test_a_checkpoint_with_hard_links_is_kept_if_all_names_are_the_jobs(
    crowd, secret, tmp_path, target, kept
):
    worker, go_on = crowd.worker(), tmp_path / "go on"
    task = begin(
        worker,
        files={"outputs/a": "mine", "sealed/000001/c/w": "mine"},
        hard_links={"sealed/000001/c/x": str(secret) if target == "secret" else target},
        seals="sealed/000001",
        waits_for=str(go_on),
    )
    await worker.seen("p", "running", step=1)
    await worker.runs()[0].uploads.checkpoints_stored()
    assert bool((await crowd.record("p")).checkpoints) == kept
    go_on.touch()
    assert (await task)["status"] == "completed"


# ---- checkpoints elsewhere


@on_every_store
@pytest.mark.parametrize("swapped", ["sealed", "sealed/000001", "sealed/000001/c"])
async def test_a_checkpoint_folder_that_is_swapped_is_neither_stored_nor_removed(
    crowd, secret, tmp_path, swapped
):
    """The link leads to a folder with the same layout, as `sealed/000001` is removed later."""
    tree = tmp_path / "tree" / "000001" / "c"
    tree.mkdir(parents=True)
    for name in ("w", "x"):
        (tree / name).write_text("the worker's own")
    elsewhere = {"sealed": tree.parent.parent, "sealed/000001": tree.parent}.get(swapped, tree)
    worker, go_on = crowd.worker(), tmp_path / "go on"
    pause = worker.store.pause_before("upload", "/checkpoints/")
    task = begin(
        worker,
        files={"checkpoints/c/w": "mine", "checkpoints/c/x": "mine"},
        checkpoint="c",
        waits_for=str(go_on),
    )
    await pause.reached.wait()
    place = folder_of(worker) / swapped
    place.rename(place.with_name("aside"))
    place.symlink_to(elsewhere)
    pause.go.set()
    await worker.runs()[0].uploads.checkpoints_stored()
    go_on.touch()
    assert (await task)["status"] == "completed"
    assert (await crowd.record("p")).checkpoints == ()
    assert sorted(path.name for path in tree.iterdir()) == ["w", "x"]
    for key in await keys_of(crowd.store, "processes/p/attempts/1/checkpoints/"):
        assert (await crowd.store.get(key)).data == b"mine"


# ---- the worker's own files in the attempt's folder


async def test_the_log_is_not_written_through_a_link(crowd, secret, monkeypatch):
    monkeypatch.setattr(logs, "SEGMENT_BYTES", 600)
    reply = await laid(crowd.worker(), links={"logs": str(secret.parent)}, lines=100)
    assert reply["status"] == "completed"
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


@pytest.mark.parametrize("taken", ["link", "pipe"])
async def test_a_folder_that_the_job_replaced_ends_no_other_files_and_hangs_nothing(
    crowd, secret, taken, tmp_path
):
    worker, go_on = crowd.worker(), tmp_path / "go on"
    task = begin(worker, files={"outputs/good.txt": "good"}, waits_for=str(go_on))
    await worker.seen("p", "running", step=1)
    folder = folder_of(worker)
    folder.rename(folder.with_name("aside"))
    if taken == "link":
        folder.symlink_to(secret.parent)
    else:
        os.mkfifo(folder)
    go_on.touch()
    reply = await task
    assert (reply["status"], contents(reply)) == ("completed", {"good.txt": "good"})
    await until(lambda: not worker.runs())
    assert not os.path.lexists(folder)
    assert secret.exists()


# ---- one odd entry


@on_every_store
async def test_one_odd_entry_costs_that_entry_and_is_listed_with_its_reason(crowd):
    worker = crowd.worker()
    reply = await laid(
        worker,
        files={"outputs/good.txt": "good"},
        links={"outputs/itself": "itself", "outputs/gone": "nothing"},
        sockets=["outputs/socket"],
    )
    assert (reply["status"], contents(reply)) == ("completed", {"good.txt": "good"})
    reasons = refused(reply)
    assert reasons.pop("itself") == reasons.pop("gone") == "it is a link"
    assert reasons.pop("socket") == "it is a socket"
    assert reasons == {}
    manifest = (await crowd.store.get(manifest_key("p", 1))).data.decode()
    assert '"refused_count":3' in manifest
    told = await crowd.worker()("download", process_id="p")
    assert told["refused_count"] == 3
    assert told["refused"] == reply["artifacts"]["refused"]


@pytest.mark.skipif(os.getuid() != 0, reason="making a device takes root")
async def test_a_device_is_neither_opened_nor_stored(crowd):
    reply = await laid(crowd.worker(), devices=["outputs/null"], offers=["null"])
    assert (reply["status"], reply["files"]) == ("completed", [])
    assert refused(reply) == {"null": "it is a device"}


async def test_many_odd_entries_do_not_grow_a_record(crowd):
    links = {f"outputs/{number:04}": "nowhere" for number in range(2000)}
    reply = await laid(crowd.worker(), links=links)
    assert reply["status"] == "completed"
    assert reply["artifacts"]["refused_count"] == 2000
    assert len(reply["artifacts"]["refused"]) == 50


async def test_a_folder_deeper_than_any_path_costs_itself_alone(
    removed_however_deep, crowd, tmp_path
):
    worker, go_on = crowd.worker(), tmp_path / "go on"
    task = begin(worker, files={"outputs/good.txt": "good"}, waits_for=str(go_on))
    await worker.seen("p", "running", step=1)
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n"
    outputs = folder_of(worker) / "outputs"
    subprocess.run(["python3", "-c", deep], cwd=outputs, check=True)
    go_on.touch()
    reply = await task
    assert (reply["status"], contents(reply)) == ("completed", {"good.txt": "good"})
    assert reply["artifacts"]["refused_count"] == 1
    await until(lambda: not worker.runs())
    assert not outputs.parent.exists()


# ---- too many, and unreadable


@on_every_store
async def test_outputs_beyond_the_limit_are_counted_as_refused(crowd, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_ARTIFACTS", 20)
    files = {f"outputs/{number:02}": "mine" for number in range(30)}
    reply = await laid(crowd.worker(), files=files)
    assert (reply["status"], reply["artifacts"]["count"]) == ("completed", 20)
    assert reply["artifacts"]["refused_count"] == 10
    assert set(refused(reply).values()) == {"there are more than 20 files"}


async def test_paths_offered_beyond_the_limit_wait_for_the_end(crowd, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_OFFERED", 2)
    worker, go_on = crowd.worker(), tmp_path / "go on"
    names = ["a", "b", "c"]
    files = {f"outputs/{name}": name for name in names}
    task = begin(worker, files=files, offers=names, waits_for=str(go_on))
    await worker.seen("p", "running", step=1)
    run = worker.runs()[0]
    await until(lambda: run.uploads.files() and not run.uploads._offers)
    assert [file.path for file in run.uploads.files()] == ["a", "b"]
    go_on.touch()
    assert contents(await task) == {name: name for name in names}


@on_every_store
async def test_a_file_that_the_disk_cannot_read_costs_itself_alone(crowd, monkeypatch):
    """The store is not at fault, and no upload waits for it to come back."""

    def broken(read):
        def read_or_fail(descriptor, *arguments):
            if str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith("outputs/bad"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(descriptor, *arguments)

        return read_or_fail

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, broken(getattr(os, name)))
    reply = await laid(crowd.worker(), files={"outputs/bad": "bad", "outputs/good": "good"})
    assert (reply["status"], contents(reply)) == ("completed", {"good": "good"})
    assert refused(reply) == {"bad": "the disk cannot read it: Input/output error"}


async def test_a_file_that_was_replaced_with_the_same_size_and_time_is_stored_anew(crowd, tmp_path):
    worker, go_on = crowd.worker(), tmp_path / "go on"
    task = begin(worker, files={"outputs/a": "old"}, offers=["a"], waits_for=str(go_on))
    await worker.seen("p", "running", step=1)
    run = worker.runs()[0]
    await until(run.uploads.files)
    path = folder_of(worker) / "outputs" / "a"
    facts = path.stat()
    path.write_text("new")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    go_on.touch()
    assert contents(await task) == {"a": "new"}
