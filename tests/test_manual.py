"""The worker, action by action, as its manual would tell it: on a folder and on a real bucket."""

import asyncio
import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from jobs import COMMAND, JOBS
from tests.kit import Caller

pytestmark = pytest.mark.parametrize("place", ["local", "strict"], indirect=True)


@pytest.fixture
def call(store, tmp_path):
    """One worker with one slot."""
    return Caller(store, tmp_path)


def fetch(url):
    """What a link leads to, as anyone would fetch it."""
    parts = urlsplit(url)
    return (
        Path(unquote(parts.path)).read_bytes() if parts.scheme == "file" else httpx.get(url).content
    )


# ---- start


async def test_start_answers_when_the_process_has_ended_with_its_result(call):
    reply = await call("start", kind="sleep", params={"steps": 3})
    assert reply["status"] == "completed"
    assert reply["result"] == {"steps_run_by_this_attempt": 3, "resumed_from": None}


async def test_a_process_is_named_after_its_runpod_job_unless_the_caller_names_it(call):
    assert (await call("start", "job-7", kind="sleep"))["process_id"] == "job-7"
    assert (await call("start", "job-8", kind="sleep", process_id="mine"))["process_id"] == "mine"


async def test_start_comes_back_with_links_to_the_files(call):
    reply = await call.start("p", artifacts=2, artifact_bytes=1000)
    assert (reply["artifacts"]["count"], reply["artifacts"]["total_bytes"]) == (2, 2000)
    for file in reply["files"]:
        data = fetch(file["url"])
        assert len(data) == file["size"] == 1000
        assert hashlib.sha256(data).hexdigest() == file["sha256"]


async def test_a_failed_process_is_a_failed_start_that_still_shows_the_process(call):
    """`error` at the top is what makes RunPod call the job FAILED, and `/retry` possible."""
    reply = await call.start("p", steps=3, fail_at=2)
    assert reply["error"]["code"] == reply["failure"]["code"] == "job_error"
    assert reply["status"] == "failed"
    assert reply["progress"]["step"] == 1


async def test_labels_come_back_with_the_process(call):
    reply = await call("start", kind="sleep", labels={"user": "u-1"})
    assert reply["labels"] == {"user": "u-1"}


async def test_starting_the_same_again_is_answered_with_what_came_of_it(call):
    first = await call.start("p", steps=2)
    again = await call.start("p", steps=2)
    assert (again["revision"], again["result"]) == (first["revision"], first["result"])


async def test_starting_something_else_under_a_taken_id_is_refused(call):
    await call.start("p", steps=2)
    assert (await call.start("p", steps=3))["error"]["code"] == "process_exists"


async def test_two_starts_of_one_process_at_once_run_it_once(call):
    one, two = await asyncio.gather(call.start("p", steps=3), call.start("p", steps=3))
    assert one["attempt"] == two["attempt"] == 1
    assert one["revision"] == two["revision"]


async def test_a_failed_process_goes_on_from_its_checkpoint_when_it_is_started_again(call):
    """As RunPod's /retry does. Steps 1 to 4 were saved; step 5 raises, whoever tries it."""
    await call.start("p", steps=6, fail_at=5, checkpoint_every=2)
    again = await call.start("p", steps=6, fail_at=5, checkpoint_every=2)
    assert again["attempt"] == 2
    assert "resumed from checkpoint" in " ".join(entry["reason"] for entry in again["history"])


async def test_timeout_seconds_ends_an_attempt(call):
    reply = await call("start", kind="sleep", params={"seconds": 60}, timeout_seconds=0.5)
    assert reply["error"]["code"] == "timed_out"
    assert reply["resumable"]


async def test_detach_is_refused_where_the_platform_would_kill_the_child(call):
    assert (await call("start", kind="sleep", detach=True))["error"]["code"] == "refused"


# ---- waiting for a slot


async def test_above_its_slots_a_worker_queues_in_order_of_arrival(call):
    first = asyncio.create_task(call.start("first", seconds=60))
    await call.seen("first", "running")
    second = asyncio.create_task(call.start("second"))
    await call.until("second", lambda view: view["queue_position"] == 1)
    third = asyncio.create_task(call.start("third"))
    await call.until("third", lambda view: view["queue_position"] == 2)
    await call("cancel", process_id="first")
    ends = [(await task)["status"] for task in (first, second, third)]
    assert ends == ["cancelled", "completed", "completed"]


async def test_a_caller_who_does_not_want_to_wait_is_refused(call):
    running = asyncio.create_task(call.start("p", seconds=60))
    await call.seen("p", "running")
    reply = await call("start", kind="sleep", on_busy="reject")
    assert reply["error"] == {**reply["error"], "code": "worker_busy", "retryable": True}
    await call("cancel", process_id="p")
    await running


async def test_a_queued_process_can_be_cancelled(call):
    running = asyncio.create_task(call.start("first", seconds=60))
    await call.seen("first", "running")
    queued = asyncio.create_task(call.start("second"))
    await call.seen("second", "queued")
    assert (await call("cancel", process_id="second"))["status"] == "cancelled"
    assert (await queued)["started_at"] is None
    await call("cancel", process_id="first")
    await running


# ---- process_status


async def test_status_shows_progress_while_the_process_runs(call):
    running = asyncio.create_task(call.start("p", seconds=60, steps=600))
    view = await call.seen("p", "running", step=3)
    assert view["progress"]["total"] == 600
    assert view["progress"]["eta_seconds"] > 0
    assert view["source"] == "memory"
    await call("cancel", process_id="p")
    await running


async def test_status_of_what_nobody_started_is_not_found_and_no_error(call):
    reply = await call("process_status", process_id="nobody")
    assert reply == {"process_id": "nobody", "status": "not_found"}


async def test_a_long_poll_answers_as_soon_as_there_is_a_newer_revision(call):
    running = asyncio.create_task(call.start("p", seconds=60))
    known = (await call.seen("p", "running"))["revision"]
    poll = asyncio.create_task(
        call("process_status", process_id="p", since_revision=known + 3, wait_seconds=60)
    )
    await call("cancel", process_id="p")
    assert (await poll)["status"] == "cancelled"
    await running


async def test_status_of_a_failed_process_is_a_successful_request(call):
    """Trap 8."""
    await call.start("p", fail_at=1)
    reply = await call("process_status", process_id="p")
    assert reply["status"] == "failed"
    assert "error" not in reply


# ---- processes


async def test_processes_lists_the_newest_first_a_page_at_a_time(call):
    for name in ("one", "two", "three"):
        await call.start(name)
    page = await call("processes", limit=2)
    assert [row["process_id"] for row in page["processes"]] == ["three", "two"]
    rest = await call("processes", limit=2, cursor=page["next_cursor"])
    assert [row["process_id"] for row in rest["processes"]] == ["one"]
    assert rest["next_cursor"] is None


async def test_processes_can_be_chosen_by_status(call):
    await call.start("good")
    await call.start("bad", fail_at=1)
    page = await call("processes", status="failed")
    assert [(row["process_id"], row["status"]) for row in page["processes"]] == [("bad", "failed")]


# ---- cancel


async def test_cancel_answers_when_the_child_is_gone(call):
    running = asyncio.create_task(call.start("p", seconds=60))
    await call.seen("p", "running", step=0)
    assert (await call("cancel", process_id="p"))["status"] == "cancelled"
    assert (await running)["status"] == "cancelled"


async def test_cancel_of_a_finished_process_changes_nothing(call):
    """Trap 14."""
    before = await call.start("p")
    reply = await call("cancel", process_id="p")
    assert (reply["status"], reply["revision"]) == ("completed", before["revision"])
    assert not reply["cancel_requested"]


async def test_a_cancelled_process_is_not_run_again(call):
    running = asyncio.create_task(call.start("p", seconds=60))
    await call.seen("p", "running")
    await call("cancel", process_id="p")
    await running
    assert (await call.start("p", seconds=60))["attempt"] == 1


async def test_cancel_of_what_nobody_started_says_so(call):
    assert (await call("cancel", process_id="nobody"))["error"]["code"] == "unknown_process"


# ---- download


async def test_download_offers_one_file_or_those_that_match(call):
    await call.start("p", artifacts=11)
    one = await call("download", process_id="p", path="artifact-1.bin")
    some = await call("download", process_id="p", pattern="artifact-1*")
    assert [file["filename"] for file in one["files"]] == ["artifact-1.bin"]
    assert [file["path"] for file in some["files"]] == [
        "artifact-1.bin",
        "artifact-10.bin",
        "artifact-11.bin",
    ]


async def test_download_works_while_the_process_runs(call):
    running = asyncio.create_task(call.start("p", seconds=60, artifacts=1))
    await call.until("p", lambda view: view["artifacts"]["count"] == 1)
    file = (await call("download", process_id="p"))["files"][0]
    assert len(fetch(file["url"])) == file["size"]
    await call("cancel", process_id="p")
    await running


async def test_download_offers_what_a_failed_process_made(call):
    await call.start("p", artifacts=1, fail_at=1)
    assert len((await call("download", process_id="p"))["files"]) == 1


async def test_download_of_a_file_that_is_not_there_says_so(call):
    await call.start("p")
    reply = await call("download", process_id="p", path="nothing.bin")
    assert reply["error"]["code"] == "unknown_artifact"


# ---- kinds


async def test_kinds_gives_the_schema_of_each_kinds_params(call):
    kinds = (await call("kinds"))["kinds"]
    assert kinds.keys() == JOBS.keys() - {COMMAND}  # no programs are declared here
    for schema in kinds.values():
        assert all("description" in field for field in schema["properties"].values())
    assert kinds["sleep"]["description"].startswith("The smallest kind: it sleeps")


# ---- health


async def test_health_says_that_the_worker_is_ready_and_what_its_store_can_do(call):
    reply = await call("health")
    assert reply["status"] == "ready"
    assert reply["store"]["ok"]
    assert reply["store"]["capabilities"]["conditional_writes"]


async def test_health_counts_what_runs_and_what_waits(call):
    first = asyncio.create_task(call.start("first", seconds=60))
    await call.seen("first", "running")
    second = asyncio.create_task(call.start("second"))
    await call.until("second", lambda view: view["queue_position"] == 1)
    reply = await call("health")
    assert (reply["status"], reply["running"], reply["queued"]) == ("busy", 1, 1)
    await call("cancel", process_id="first")
    await asyncio.gather(first, second)
