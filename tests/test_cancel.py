"""Stopping a process: who may, from where, and what wins against what."""

import asyncio

import pytest

from records.keys import cancel_key
from records.notes import leave_note, leave_platform_note, platform_stop_key, read_note
from records.record import STOPPED_BY_PLATFORM, Writer, new_record
from tests.crowd import on_every_store, start_of, until
from tests.faulty_s3 import FaultyS3
from tests.servers import open_place
from utils import utc_now

LONG = {"seconds": 60, "steps": 600}


def at_attempt(number):
    """The record of the process `p`, as a worker holds it."""
    record = new_record(
        process_id="p",
        kind="sleep",
        params={},
        request_hash="",
        writer=Writer(worker_id="w", nonce="n"),
        now=utc_now(),
    )
    return record.model_copy(update={"attempt": number})


# ---- by a caller


@on_every_store
async def test_another_worker_cancels_and_answers_when_the_child_is_gone(crowd):
    owner, other = crowd.worker(), crowd.worker()
    start = await owner.running("p", step=1)
    child = owner.children()[0]
    reply = await other("cancel", process_id="p")
    assert reply["status"] == "cancelled"
    assert child._gone.done()
    assert (await start)["revision"] == reply["revision"]


async def test_a_child_that_ignores_every_request_is_killed(crowd):
    owner, other = crowd.worker(cancel_grace_seconds=0.4), crowd.worker()
    await owner.running("p", ignore_sigterm=True, step=1)
    child = owner.children()[0]
    assert (await other("cancel", process_id="p"))["status"] == "cancelled"
    assert child._gone.done()


@on_every_store
async def test_a_process_whose_owner_died_is_settled_by_whoever_cancels_it(crowd):
    owner, heir = crowd.worker(), crowd.heir()
    await owner.running("p")
    await owner.die()
    reply = await heir("cancel", process_id="p")
    assert reply["status"] == "cancelled"
    assert reply["history"][-1]["reason"] == "cancelled; no worker was running it"
    assert reply["history"][-1]["worker_id"] == heir.settings.worker_id
    page = await heir("processes", status="cancelled")
    assert [row["process_id"] for row in page["processes"]] == ["p"]


async def test_a_cancel_that_nobody_settled_is_heeded_by_whoever_goes_on(crowd):
    """The caller did not wait for the lease; the note is there for the next attempt."""
    owner, other, heir = crowd.worker(), crowd.worker(), crowd.heir()
    await owner.running("p")
    await owner.die()
    reply = await other("cancel", process_id="p", wait_seconds=0)
    assert (reply["status"], reply["cancel_requested"]) == ("running", True)
    assert (await heir.start("p", **LONG))["status"] == "cancelled"


async def test_an_interrupted_process_is_cancelled_at_once(crowd):
    owner, other = crowd.worker(), crowd.worker(lease_seconds=600)
    await owner.running("p", step=1)
    await owner.manager.drain()
    assert (await other("cancel", process_id="p"))["status"] == "cancelled"


async def test_two_cancels_are_one(crowd):
    owner, other = crowd.worker(), crowd.worker()
    start = await owner.running("p", step=1)
    replies = await asyncio.gather(
        owner("cancel", process_id="p"),
        other("cancel", process_id="p"),
        other("cancel", process_id="p"),
    )
    assert {reply["status"] for reply in replies} == {"cancelled"}
    assert {reply["revision"] for reply in replies} == {(await start)["revision"]}
    ends = [entry for entry in (await start)["history"] if entry["status"] == "cancelled"]
    assert len(ends) == 1


@on_every_store
async def test_an_empty_note_means_cancel(crowd):
    """A link writes no other."""
    start = await crowd.worker().running("p")
    await crowd.store.put(cancel_key("p"), b"")
    assert (await start)["status"] == "cancelled"


FOREIGN = {
    "words": b"stop",
    "deep": b"[" * 200_000,
    "no text": b"\xff\xfe",
    "large": b"{" + b" " * (8 << 20) + b"}",
    "another caller": b'{"by": "administrator", "nonce": "1"}',
    "platform": b'{"by": "platform"}',
    "platform, as this worker writes it": b'{"by":"platform","attempt":1,"nonce":"guessed"}',
    "an attempt that no key can name": b'{"by":"platform","attempt":%s,"nonce":""}' % (b"9" * 900),
}


@on_every_store
async def test_a_note_of_a_foreign_form_stops_nothing_and_is_read_no_further(crowd):
    """Above all it stops nothing in the platform's name, after which the process would go on."""
    owner = crowd.worker(cancel_poll_seconds=0.05)
    start = await owner.running("p")
    for note in FOREIGN.values():
        await crowd.store.put(cancel_key("p"), note)
        owner.store.forget_calls()
        await until(lambda: len(owner.store.asked("get", key="/cancel")) > 2)
        assert await read_note(crowd.store, "p") is None
    assert not start.done()
    await crowd.store.put(cancel_key("p"), b"")
    assert (await start)["status"] == "cancelled"


@on_every_store
async def test_a_platform_note_counts_by_its_proof_alone(crowd):
    await leave_platform_note(crowd.store, at_attempt(1))
    note = await crowd.store.get(cancel_key("p"))
    assert (await read_note(crowd.store, "p")).by_platform
    await crowd.store.put(cancel_key("p"), note.data.replace(b'"nonce":"', b'"nonce":"0'))
    assert await read_note(crowd.store, "p") is None
    await crowd.store.put(cancel_key("p"), note.data)
    await crowd.store.delete([platform_stop_key("p", 1)])
    assert await read_note(crowd.store, "p") is None


async def test_a_platform_note_for_an_attempt_that_is_over_stops_nothing(crowd):
    """A worker that was frozen between its read and its writes leaves one."""
    first, second = crowd.worker(), crowd.worker(cancel_poll_seconds=0.05)
    await first.running("p", step=1)
    await first.manager.drain()
    start = await second.running("p")
    await leave_platform_note(crowd.store, at_attempt(1))
    second.store.forget_calls()
    await until(lambda: len(second.store.asked("get", key="stopped_by_platform")) > 2)
    assert not start.done()
    await leave_platform_note(crowd.store, at_attempt(2))
    assert (await start)["history"][-1]["reason"] == STOPPED_BY_PLATFORM


@pytest.mark.parametrize("key", ["/cancel", "stopped_by_platform"])
async def test_a_note_that_the_store_refuses_to_read_stops_no_takeover(crowd, caplog, key):
    """The holder of a link can encrypt a note with a key of their own, or archive it."""
    first, second = crowd.worker(), crowd.worker(cancel_poll_seconds=0.05)
    params = {"steps": 10, "seconds": 1}
    await first.running("p", **params)
    await first.manager.drain()
    await leave_platform_note(crowd.store, at_attempt(1))
    second.store.refuse("get", key)
    view = await second.start("p", **params)
    assert (view["status"], view["attempt"]) == ("completed", 2)
    assert len(second.store.asked("get", key=key)) > 2
    assert caplog.text.count("its cancel note cannot be read") == 2  # by the claim, by the attempt


async def test_a_look_for_a_note_is_one_request_of_at_most_a_kilobyte(ceph):
    with FaultyS3(ceph.endpoint_url) as proxy:
        store = open_place({**ceph.place(), "endpoint_url": proxy.url})
        assert await read_note(store, "p") is None
        await store.put(cancel_key("p"), bytes(8 << 20))
        assert await read_note(store, "p") is None
        await store.close()
    looks = [asked for asked in proxy.asked if asked.method == "GET"]
    assert [asked.headers["range"] for asked in looks] == ["bytes=0-1023"] * 2


async def test_cancel_during_the_upload_of_artifacts_wins(crowd):
    owner = crowd.worker()
    pause = owner.store.pause_before("upload", "/artifacts/", nth=None)
    start = owner.starts("p", artifacts=1)
    await pause.reached.wait()
    assert (await owner("cancel", process_id="p"))["status"] == "cancelled"
    assert (await start)["status"] == "cancelled"


# ---- cancel and the end of the job, at the same time

#: Where in its last moments the process is when the cancel arrives.
MOMENTS = [
    ("put", "/logs/"),
    ("put", "/manifest.json"),
    ("upload", "/artifacts/"),
    ("replace", "/record.json"),
    ("put", "~running"),
    ("put", "~completed"),
]


@pytest.mark.parametrize("from_elsewhere", [False, True], ids=["owner", "elsewhere"])
@pytest.mark.parametrize(("name", "key"), MOMENTS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_of_cancel_and_finish_one_wins_and_both_callers_hear_the_same(
    crowd, when, name, key, from_elsewhere
):
    owner = crowd.worker(cancel_poll_seconds=0.05)
    canceller = crowd.worker() if from_elsewhere else owner
    stop = owner.store.pause_before if when == "before" else owner.store.pause_after
    pause = stop(name, key)
    start = owner.starts("p", artifacts=1, print_lines=1)
    await pause.reached.wait()
    cancel = asyncio.create_task(canceller("cancel", process_id="p"))
    notes = canceller.store.asked
    await until(lambda: notes("put", key="/cancel") or cancel.done())
    pause.go.set()
    ended, told = await asyncio.gather(start, cancel)
    stored = await crowd.record("p")
    assert ended["status"] == told["status"] == stored.status
    assert ended["revision"] == told["revision"] == stored.revision
    assert sum(entry.status in ("completed", "cancelled") for entry in stored.history) == 1


@on_every_store
@pytest.mark.parametrize("before", [b"", b"no note", None])
async def test_a_late_platform_note_leaves_a_callers_cancel(crowd, before):
    """The worker is frozen between its look for a note and its write; the caller cancels then."""
    if before is not None:
        await crowd.store.put(cancel_key("p"), before)
    settled = before == b"" and (await read_note(crowd.store, "p")).version
    worker = crowd.worker()
    pause = worker.store.pause_before("put", "stopped_by_platform")
    record = at_attempt(1).model_copy(update={"settled_note": settled or None})
    late = asyncio.create_task(leave_platform_note(worker.store, record))
    await pause.reached.wait()
    await leave_note(crowd.store, "p")
    pause.go.set()
    await late
    assert not (await read_note(crowd.store, "p")).by_platform


@pytest.mark.parametrize(("there", "asked", "left"), [(1, 2, 2), (2, 1, 2)])
async def test_of_platform_notes_that_of_the_later_attempt_stays(crowd, there, asked, left):
    await leave_platform_note(crowd.store, at_attempt(there))
    await leave_platform_note(crowd.store, at_attempt(asked))
    assert (await read_note(crowd.store, "p")).attempt == left


async def test_an_object_that_is_no_note_is_replaced_by_one(crowd):
    await crowd.store.put(cancel_key("p"), b"no note")
    await leave_platform_note(crowd.store, at_attempt(1))
    assert (await read_note(crowd.store, "p")).attempt == 1


# ---- notes of the past


async def test_the_note_of_a_failed_attempt_does_not_stop_the_next(crowd):
    worker = crowd.worker()
    params = {"steps": 3, "seconds": 1, "fail_at": 3}
    await worker.start("p", **params)
    await leave_note(crowd.store, "p")
    again = await worker.start("p", **params)
    assert (again["status"], again["attempt"]) == ("failed", 2)


async def test_a_retried_attempt_can_be_cancelled_like_any_other(crowd):
    worker, other = crowd.worker(), crowd.worker()
    params = LONG | {"fail_at": 600, "checkpoint_every": 1}
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **params)))
    await worker.seen("p", "running", step=1)
    deliver.cancel()
    await asyncio.wait([deliver])
    await leave_note(crowd.store, "p")
    retried = worker.starts("p", **params)
    await worker.until("p", lambda view: view["attempt"] == 2 and view["status"] == "running")
    await other("cancel", process_id="p")
    assert (await retried)["status"] == "cancelled"
    assert not (await retried)["resumable"]


# ---- by the platform


async def test_a_platform_cancel_kills_the_child_then_says_so_then_goes_on(crowd):
    """Trap 15."""
    worker = crowd.worker()
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **LONG)))
    await worker.seen("p", "running", step=1)
    child = worker.children()[0]
    deliver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deliver
    assert child._gone.done()
    record = await crowd.record("p")
    assert (record.status, record.failure.code) == ("cancelled", "stopped_by_platform")
    assert record.resumable
    assert not worker.runs()


async def test_what_the_platform_stopped_goes_on_when_it_is_delivered_again(crowd):
    worker, other = crowd.worker(), crowd.worker()
    params = {"steps": 200, "seconds": 6}
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **params)))
    await worker.seen("p", "running", step=1)
    deliver.cancel()
    await asyncio.wait([deliver])
    view = await other.start("p", **params)
    assert (view["status"], view["attempt"]) == ("completed", 2)
    assert view["result"]["resumed_from"] > 0


async def test_several_cancellations_in_a_row_change_nothing(crowd):
    worker = crowd.worker()
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **LONG)))
    await worker.seen("p", "running", step=1)
    while not deliver.done():
        deliver.cancel()
        await asyncio.sleep(0.01)
    assert deliver.cancelled()
    assert (await crowd.record("p")).failure.code == "stopped_by_platform"


async def test_a_platform_cancel_before_the_record_is_there(crowd):
    worker = crowd.worker()
    pause = worker.store.pause_before("create")
    deliver = asyncio.create_task(worker.manager.deliver(start_of("p", **LONG)))
    await pause.reached.wait()
    deliver.cancel()
    pause.go.set()
    with pytest.raises(asyncio.CancelledError):
        await deliver
    record = await crowd.record("p")
    assert (record.status, record.runs) == ("cancelled", 0)
    assert record.resumable


async def test_a_platform_cancel_in_the_queue_frees_the_place_in_line(crowd):
    worker = crowd.worker()
    first = await worker.running("first")
    deliver = asyncio.create_task(worker.manager.deliver(start_of("second", **LONG)))
    await worker.until("second", lambda view: view["queue_position"] == 1)
    deliver.cancel()
    await asyncio.wait([deliver])
    assert (await crowd.record("second")).failure.code == "stopped_by_platform"
    await worker("cancel", process_id="first")
    assert (await first)["status"] == "cancelled"
    assert (await worker.start("third"))["status"] == "completed"


async def test_a_cancelled_follower_of_the_same_job_stops_the_owner(crowd):
    """RunPod holds the owner for lost and has delivered its job again; then it calls that off."""
    owner, other = crowd.worker(), crowd.worker()
    start = await owner.running("p", step=1)
    follower = asyncio.create_task(other.manager.deliver(start_of("p", **LONG)))
    await until(lambda: other.store.asked("get", key="record"))
    follower.cancel()
    await asyncio.wait([follower])
    assert follower.cancelled()
    assert (await start)["failure"]["code"] == "stopped_by_platform"


async def test_a_cancelled_follower_of_another_job_stops_nothing(crowd):
    owner, other = crowd.worker(), crowd.worker()
    params = {"steps": 20, "seconds": 1}
    start = owner.starts("p", **params)
    await owner.seen("p", "running")
    follower = asyncio.create_task(other.manager.deliver(start_of("p", "another", **params)))
    await until(lambda: other.store.asked("get", key="record"))
    follower.cancel()
    await asyncio.wait([follower])
    assert (await start)["status"] == "completed"


async def test_the_platforms_note_does_not_stop_a_later_delivery(crowd):
    """It was meant for a job that is over; a caller's note is meant for the process."""
    owner, other, heir = crowd.worker(), crowd.worker(), crowd.heir()
    params = {"steps": 3}
    pause = owner.store.pause_before("upload")
    owner.starts("p", artifacts=1, **params)
    await pause.reached.wait()
    await owner.die()
    follower = asyncio.create_task(other.manager.deliver(start_of("p", artifacts=1, **params)))
    await until(lambda: other.store.asked("get", key="record"))
    follower.cancel()
    await asyncio.wait([follower])
    assert other.store.asked("create", key="cancel")
    assert (await heir.start("p", artifacts=1, **params))["status"] == "completed"


async def test_the_platforms_note_does_not_replace_a_callers(crowd):
    """Else a process that somebody cancelled would go on at the next delivery."""
    owner, other = crowd.worker(), crowd.worker()
    await owner.running("p")
    await owner.die()
    await other("cancel", process_id="p", wait_seconds=0)
    follower = asyncio.create_task(other.manager.deliver(start_of("p", **LONG)))
    await until(lambda: other.store.asked("get", key="record"))
    follower.cancel()
    await asyncio.wait([follower])
    reply = await crowd.heir().start("p", **LONG)
    assert (reply["status"], reply["resumable"]) == ("cancelled", False)
