"""What becomes of a process whose worker is gone, or may be gone, or comes back."""

import asyncio
import json

from tests.crowd import on_every_store, until
from tests.kit import Reply

LONG = {"seconds": 60, "steps": 600}


def reasons(view: Reply) -> list[str]:
    return [entry["reason"] for entry in view["history"]]


async def has_checkpoint(crowd, process_id, *, at_least=1):
    await crowd.record_when(process_id, lambda record: len(record.checkpoints) >= at_least)


# ---- an owner that is gone


@on_every_store
async def test_a_process_whose_worker_died_goes_on_elsewhere_from_its_checkpoint(crowd):
    """End to end, with a real lease: 20 of 40 steps are saved when the worker dies."""
    first, second = crowd.worker(), crowd.worker()
    params = {"steps": 40, "seconds": 16, "checkpoint_every": 20}
    await first.running("p", **params)
    await has_checkpoint(crowd, "p")
    await first.die()
    view = await second.start("p", **params)
    assert (view["status"], view["attempt"]) == ("completed", 2)
    assert view["result"]["resumed_from"] == 20
    assert view["result"]["steps_run_by_this_attempt"] == 20
    assert "worker worker-0 was lost" in reasons(view)
    assert "resumed from checkpoint 1" in reasons(view)


async def test_a_follower_takes_over_when_the_owner_dies(crowd):
    first, second = crowd.worker(), crowd.worker()
    params = {"steps": 10, "seconds": 2}
    await first.running("p", **params)
    follower = second.starts("p", **params)
    await first.die()
    assert (await follower)["worker_id"] == "worker-1"


async def test_without_ages_a_live_process_is_followed_and_a_dead_one_taken_over(crowd):
    """The store does not tell the time: the follower watches the record itself for a lease."""
    first, second = crowd.worker(), crowd.worker()
    second.store.timeless = True
    params = {"steps": 10, "seconds": 8}  # more than two leases
    start = await first.running("live", **params)
    assert (await second.start("live", **params))["attempt"] == 1
    await start
    await first.running("dead", **params)
    follower = second.starts("dead", **params)
    await until(lambda: second.store.asked("get", key="dead/record"))
    await first.die()
    view = await follower
    assert (view["worker_id"], view["attempt"]) == ("worker-1", 2)
    times = [entry["at"] for entry in view["history"]]
    assert times == sorted(times)


async def test_what_nobody_wrote_for_a_lease_is_shown_as_interrupted(crowd):
    first, heir = crowd.worker(), crowd.heir()
    await first.running("p")
    view = await heir("process_status", process_id="p")
    assert (view["status"], view["resumable"]) == ("interrupted", True)
    assert (await crowd.record("p")).status == "running"  # reading changes nothing


async def test_attempts_that_all_died_are_one_day_enough(crowd):
    dead = [crowd.heir() for _ in range(2)]
    for worker in dead:
        await worker.running("p")
        await worker.die()
    view = await crowd.heir(max_attempts=2).start("p", **LONG)
    assert (view["status"], view["failure"]["code"]) == ("failed", "too_many_attempts")
    assert view["attempt"] == 2
    assert not view["resumable"]
    again = await crowd.heir(max_attempts=2).start("p", **LONG)
    assert again["revision"] == view["revision"]


@on_every_store
async def test_of_two_workers_that_claim_at_once_one_wins_and_both_answer_the_same(crowd):
    dead = crowd.worker()
    params = {"steps": 5}
    paused = dead.store.pause_before("upload")  # never let on
    dead.starts("p", artifacts=1, **params)
    await paused.reached.wait()
    await dead.die()
    rivals = [crowd.heir(), crowd.heir()]
    pauses = [rival.store.pause_before("replace") for rival in rivals]
    starts = [rival.starts("p", artifacts=1, **params) for rival in rivals]
    for pause in pauses:
        await pause.reached.wait()
    for rival, pause in zip(rivals, pauses, strict=True):
        rival.store.later_seconds = 0  # each other's lease is as fresh as it is
        pause.go.set()
    one, two = await asyncio.gather(*starts)
    assert one["status"] == two["status"] == "completed"
    assert (one["attempt"], one["revision"]) == (two["attempt"], two["revision"])
    assert one["attempt"] == 2


async def test_an_interrupted_process_is_resumed_at_once(crowd):
    """No lease to wait for: the worker said that it lets go."""
    first, second = crowd.worker(), crowd.worker(lease_seconds=600)
    params = {"steps": 100, "seconds": 3}
    start = await first.running("p", step=1, **params)
    await first.manager.drain()
    assert (await start)["status"] == "interrupted"
    view = await second.start("p", **params)
    assert (view["status"], view["attempt"]) == ("completed", 2)
    assert view["result"]["resumed_from"] > 0
    assert "the worker is shutting down" in reasons(view)


@on_every_store
async def test_losing_a_race_for_an_interrupted_process_is_no_answer(crowd):
    """The loser looks again: on serverless, an answer of `interrupted` is never sent at all."""
    first, slow, quick = crowd.worker(), crowd.worker(), crowd.worker()
    params = {"steps": 100, "seconds": 3}
    await first.running("p", step=1, **params)
    await first.manager.drain()
    pause = slow.store.pause_before("replace")
    loser = slow.starts("p", **params)
    await pause.reached.wait()
    winner = quick.starts("p", **params)
    await crowd.stored("p", "queued", "running")
    pause.go.set()
    assert (await loser)["status"] == (await winner)["status"] == "completed"
    assert (await loser)["attempt"] == 2


# ---- an owner that was only thought to be gone


@on_every_store
async def test_a_thawed_owner_kills_its_child_and_writes_nothing(crowd):
    first, heir = crowd.worker(), crowd.heir()
    start = await first.running("p", step=1)
    child = first.children()[0]
    first.store.freeze()
    await heir.running("p")
    first.store.forget_calls()
    before = len(first.store.stored)
    await first.awake()
    await asyncio.shield(child._gone)  # the whole group is reaped
    await until(lambda: not first.runs())
    assert len(first.store.stored) == before
    assert not first.store.asked("put", "upload", "delete")
    view = await first("process_status", process_id="p")
    assert (view["attempt"], view["source"]) == (2, "storage")
    await heir("cancel", process_id="p")
    assert (await start)["worker_id"] == heir.settings.worker_id


@on_every_store
async def test_a_thawed_owner_cannot_undo_the_end_that_somebody_settled_for_it(crowd):
    """Trap 13. The end is written in the settler's name; else the owner takes it for its own."""
    first, heir = crowd.worker(), crowd.heir()
    start = await first.running("p", step=1)
    child = first.children()[0]
    first.store.freeze()
    assert (await heir("cancel", process_id="p"))["status"] == "cancelled"
    settled = await crowd.record("p")
    await first.awake()
    assert (await start)["status"] == "cancelled"
    await asyncio.shield(child._gone)
    assert await crowd.record("p") == settled


async def test_each_attempt_touches_only_files_of_its_own(crowd):
    """What attempt 1 stored, attempt 2 reads and leaves alone; what the zombie adds, is its own."""
    first, heir = crowd.worker(), crowd.heir()
    params = {"steps": 100, "seconds": 3, "checkpoint_every": 10, "artifacts": 1}
    await first.running("p", **params)
    await has_checkpoint(crowd, "p")
    await first.die()
    heir.store.forget_calls()
    assert (await heir.start("p", **params))["attempt"] == 2
    for call in heir.store.asked("put", "upload", "create", key="/attempts/"):
        assert call.key.startswith("processes/p/attempts/2/")
    for call in heir.store.asked("delete", key="/attempts/"):
        assert "/checkpoints/" in call.key  # one that no record mentions any more


# ---- deliveries of what has ended


async def test_a_completed_process_is_only_answered(crowd):
    first, second = crowd.worker(), crowd.worker()
    before = await first.start("p", steps=2)
    second.store.forget_calls()
    after = await second.start("p", steps=2)
    assert (after["revision"], after["result"]) == (before["revision"], before["result"])
    assert not second.store.asked("replace", "upload")


async def test_a_failed_process_resumes_when_it_is_delivered_again(crowd):
    params = {"steps": 6, "fail_at": 5, "checkpoint_every": 2}
    await crowd.worker().start("p", **params)
    again = await crowd.worker().start("p", **params)
    assert again["attempt"] == 2
    assert "delivered again after job_error" in reasons(again)
    assert "resumed from checkpoint 2" in reasons(again)


@on_every_store
async def test_two_deliveries_at_once_on_two_workers_run_it_once(crowd):
    one, two = crowd.worker(), crowd.worker()
    replies = await asyncio.gather(
        one.start("p", steps=5, seconds=1), two.start("p", steps=5, seconds=1)
    )
    assert {reply["attempt"] for reply in replies} == {1}
    assert len({(reply["revision"], json.dumps(reply["result"])) for reply in replies}) == 1


async def test_a_follower_answers_with_the_failure_and_does_not_run_it_again(crowd):
    """Trap 16. Only a delivery that comes after the failure resumes the process."""
    one, two = crowd.worker(), crowd.worker()
    params = {"steps": 10, "seconds": 2, "fail_at": 10}
    await one.running("p", **params)
    follower = await two.start("p", **params)
    assert (follower["status"], follower["attempt"]) == ("failed", 1)


async def test_a_start_answers_with_its_own_end_not_with_what_came_after(crowd):
    """Attempt 1 failed and is delivered again before its own answer is made up."""
    one, two = crowd.worker(), crowd.worker()
    params = {"steps": 3, "fail_at": 3}
    pause = one.store.pause_after("put", "~failed")  # the row: the very last thing
    first = one.starts("p", **params)
    await pause.reached.wait()
    second = two.starts("p", **params)
    await crowd.record_when("p", lambda record: record.attempt == 2)
    pause.go.set()
    assert ((await first)["attempt"], (await first)["status"]) == (1, "failed")
    assert (await second)["attempt"] == 2


async def test_a_retry_that_meets_the_failed_attempt_clearing_up_is_a_retry(crowd):
    """On the same worker, while the last row of attempt 1 is on its way."""
    worker = crowd.worker()
    params = {"steps": 3, "fail_at": 3}
    pause = worker.store.pause_after("put", "~failed")
    first = worker.starts("p", **params)
    await pause.reached.wait()
    retry = worker.starts("p", **params)
    await asyncio.sleep(0)
    pause.go.set()
    assert (await first)["attempt"] == 1
    assert (await retry)["attempt"] == 2


# ---- checkpoints


@on_every_store
async def test_a_broken_checkpoint_is_passed_over_for_the_one_before(crowd):
    params = {"steps": 100, "seconds": 3, "checkpoint_every": 10}
    first = crowd.worker()
    await first.running("p", **params)
    await has_checkpoint(crowd, "p", at_least=2)
    await first.die()
    older, newest = (await crowd.record("p")).checkpoints
    page = await crowd.store.list(f"processes/p/attempts/1/checkpoints/{newest.seq:06d}/")
    await crowd.store.put(page.objects[0].key, b"half")
    view = await crowd.heir().start("p", **params)
    assert f"resumed from checkpoint {older.seq}" in reasons(view)
    assert view["result"]["resumed_from"] == 10 * older.seq


async def test_only_the_last_two_checkpoints_are_kept(crowd):
    worker = crowd.worker()
    await worker.start("p", steps=12, seconds=2, checkpoint_every=1)
    kept = (await crowd.record("p")).checkpoints
    page = await crowd.store.list("processes/p/attempts/1/checkpoints/")
    there = {row.key.split("/")[5] for row in page.objects}
    named = {f"{c.seq:06d}" for c in kept}
    assert named <= there
    assert len(named) <= 2
    # One may have been on its way when the job ended, which nobody resumes any more.
    assert sorted(there)[: len(named)] == sorted(named)
    assert len(there - named) <= 1


async def test_a_failed_job_keeps_the_checkpoint_it_made_just_before(crowd):
    """Slow as the store may be: what was handed over is stored before `failed` is."""
    worker = crowd.worker()
    worker.store.delay("upload", "/checkpoints/", seconds=0.5)
    await worker.start("p", steps=3, fail_at=3, checkpoint_every=2)
    assert len((await crowd.record("p")).checkpoints) == 1


# ---- whose write it was


@on_every_store
async def test_a_claim_whose_answer_was_lost_is_ours(crowd):
    first, heir = crowd.worker(), crowd.heir()
    await first.running("p")
    await first.die()
    heir.store.lose_answer("replace")
    view_task = await heir.running("p")
    record = await crowd.record("p")
    assert (record.attempt, record.writer.worker_id) == (2, heir.settings.worker_id)
    await heir("cancel", process_id="p")
    assert (await view_task)["attempt"] == 2


@on_every_store
async def test_a_start_whose_answer_was_lost_runs_once(crowd):
    worker = crowd.worker()
    worker.store.lose_answer("create")
    view = await worker.start("p", steps=2)
    assert (view["status"], view["attempt"]) == ("completed", 1)
    assert [entry["status"] for entry in view["history"]] == ["queued", "running", "completed"]


async def test_two_attempts_on_one_worker_do_not_forget_each_other(crowd):
    """An attempt that is still closing must not take the next one's place with it."""
    worker = crowd.worker()
    pause = worker.store.pause_after("put", "~failed")
    params = {"steps": 3, "fail_at": 3}
    first = worker.starts("p", **params)
    await pause.reached.wait()
    run = worker.manager.runs._runs.get("p")
    worker.manager.runs._runs["p"] = later = object()
    pause.go.set()
    await first
    assert run.task.done()
    assert worker.manager.runs._runs.pop("p") is later
