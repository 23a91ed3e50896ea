"""Who is there: a worker shows itself while it lives, and only then."""

import asyncio
import json
import os
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.crowd import until
from tests.patience import PATIENCE
from tests.servers import keys_of

TURN = {"presence_seconds": 1}


async def names(worker):
    """Who is there, as one worker tells."""
    return sorted(row["name"] for row in (await worker("metrics"))["fleet"])


async def until_there(worker, *expected):
    async with asyncio.timeout(PATIENCE):
        while await names(worker) != sorted(expected):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_worker_shows_itself_while_it_lives_and_leaves_nothing(fleet):
    worker, other = fleet.worker(slots=3, role="gpu"), fleet.worker()
    assert await names(other) == ["worker-1"]
    await worker.present()
    assert await keys_of(fleet.store, "workers/") == ["workers/worker-0.json"]
    reply = await other("metrics")
    (row,) = [row for row in reply["fleet"] if row["name"] == "worker-0"]
    assert (row["role"], row["slots"], row["running"], row["queued"]) == ("gpu", 3, 0, 0)
    assert (reply["workers"], reply["all_workers"]["slots"]) == (2, 4)
    await worker.presence.leave()
    assert await names(other) == ["worker-1"]
    assert await keys_of(fleet.store, "workers/") == []


async def test_it_writes_its_figures_again_every_turn(fleet):
    worker, other = fleet.worker(presence_seconds=0.1), fleet.worker()
    await worker.present()
    await worker.start("p")
    attempts = {}
    async with asyncio.timeout(PATIENCE):
        while not attempts:
            attempts = (await other("metrics"))["all_workers"]["attempts"]
            await asyncio.sleep(0.05)
    assert attempts == {"sleep": 1}


async def test_a_worker_that_dies_drops_out(fleet):
    dying, other = fleet.worker(**TURN), fleet.worker(**TURN)
    await dying.present()
    await dying.start("p")
    await other.present()
    await until_there(other, "worker-0", "worker-1")
    await dying.die()
    await until_there(other, "worker-1")
    assert (await other("metrics"))["all_workers"]["processes"] == {}


async def test_each_worker_is_judged_by_its_own_turn(fleet):
    """A worker that writes every 10 minutes is not dead to one that writes every second; nor does
    one of those live for half an hour to the other."""
    slow, quick = fleet.worker(presence_seconds=600), fleet.worker(**TURN)
    for worker in (slow, quick):
        await worker.present()
    for turn in (1, 600):
        looking = fleet.worker(presence_seconds=turn)
        looking.store.later_seconds = 1000
        assert "worker-1" not in await names(looking)
        assert "worker-0" in await names(looking)
        looking.store.later_seconds = 2000
        assert await names(looking) == [looking.settings.worker_id]


async def test_a_slow_worker_keeps_its_name_from_a_quick_one(fleet):
    slow = fleet.worker(worker_id="w", presence_seconds=600)
    await slow.present()
    quick = fleet.worker(worker_id="w", **TURN)
    quick.store.later_seconds = 1000
    await quick.present()
    assert quick.presence._name != slow.presence._name


async def test_what_is_read_is_bounded(fleet, monkeypatch):
    monkeypatch.setattr("health.presence.MAX_READS", 3)
    for number in range(5):
        await fleet.store.put(f"workers/strange-{number}.json", b"{}")
    worker = fleet.worker()
    assert (await worker("metrics"))["unreadable"] == 5
    assert len(worker.store.asked("get", key="workers/")) == 4  # one of them for the time


async def test_a_worker_whose_store_is_away_still_tells_of_itself_and_comes_back(fleet):
    worker = fleet.worker(presence_seconds=0.1)
    worker.store.away = True
    keeping = asyncio.create_task(worker.presence.keep())
    await until(lambda: len(worker.store.asked("get", key="workers/")) > 2)
    reply = await worker("metrics")
    assert reply["this_worker"]["slots"] == 1
    assert (reply["workers"], reply["all_workers"]) == (None, None)  # which is not "nobody"
    assert "switched the store off" in reply["why"]
    text = await worker("metrics", format="prometheus")
    assert text["error"]["code"] == "storage_unavailable"
    worker.store.away = False
    await until(lambda: worker.presence._version)
    await worker.presence.leave()
    await keeping


async def test_who_leaves_does_not_wait_for_a_store_that_hangs(fleet):
    worker = fleet.worker()
    await worker.present()
    worker.store.freeze()
    began = time.monotonic()
    await worker.presence.leave()
    assert time.monotonic() - began < 3


async def test_a_write_that_is_under_way_does_not_outlive_the_worker(fleet):
    worker = fleet.worker(presence_seconds=0.1)
    await worker.present()
    pause = worker.store.pause_before("replace", "workers/")
    await pause.reached.wait()
    leaving = asyncio.create_task(worker.presence.leave())
    pause.go.set()
    await leaving
    assert await keys_of(fleet.store, "workers/") == []


async def test_a_lost_answer_is_no_other_worker(fleet):
    worker = fleet.worker(presence_seconds=0.1)
    for nth in (1, 2, 4):
        worker.store.lose_answer("replace", "workers/", nth=nth)
    worker.store.lose_answer("create", "workers/")
    await worker.present()
    worker.store.forget_calls()
    await until(lambda: len(worker.store.asked("replace", key="workers/")) > 6)
    await until_there(fleet.worker(), "worker-0", "worker-1")
    assert worker.presence._name == "worker-0"


# ---- two workers by mistake called the same


async def test_two_workers_of_one_id_are_two(fleet, caplog):
    one, two = fleet.worker(worker_id="w"), fleet.worker(worker_id="w")
    await asyncio.gather(one.start("p1"), two.start("p2"))
    await asyncio.gather(one.present(), two.present())
    assert "another worker calls itself 'w'" in caplog.text
    third = fleet.worker()
    reply = await third("metrics")
    assert reply["workers"] == 3
    assert reply["all_workers"]["attempts"] == {"sleep": 2}
    twins = [row for row in reply["fleet"] if row["worker_id"] == "w"]
    assert len({row["boot"] for row in twins}) == len({row["name"] for row in twins}) == 2
    text = (await third("metrics", format="prometheus"))["text"]
    series = [
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(series) == len(set(series))  # or Prometheus refuses all of it


async def test_a_worker_that_starts_again_after_a_clean_end_has_its_name_back(fleet):
    first = fleet.worker(worker_id="w")
    await first.present()
    await first.presence.leave()
    again = fleet.worker(worker_id="w")
    await again.present()
    assert await keys_of(fleet.store, "workers/") == ["workers/w.json"]


async def test_a_worker_that_was_frozen_gives_its_name_up_to_its_successor(fleet):
    frozen = fleet.worker(worker_id="w", **TURN)
    await frozen.present()
    frozen.store.freeze()
    await asyncio.sleep(0)  # whatever is under way stops at the store
    successor = fleet.worker(worker_id="w", **TURN)
    successor.store.later_seconds = 1000
    await successor.present()
    assert await keys_of(fleet.store, "workers/") == ["workers/w.json"]
    successor.store.later_seconds = 0
    await frozen.awake()
    await until(lambda: "~" in frozen.presence._name)
    assert successor.presence._name == "w"


@pytest.mark.parametrize("worker_id", ["../x", "a/b c", "ü" * 300, "."])
async def test_whatever_a_worker_is_called_it_has_a_key(fleet, worker_id):
    worker = fleet.worker(worker_id=worker_id)
    await worker.present()
    assert await names(fleet.worker()) == sorted([worker_id, "worker-1"])


async def test_a_worker_of_unknown_age_is_not_said_to_live_and_is_counted(fleet):
    there, looking = fleet.worker(), fleet.worker()
    await there.present()
    await looking.present()
    looking.store.timeless = True
    reply = await looking("metrics")
    assert (reply["workers"], reply["unreadable"]) == (1, 1)


async def test_a_name_whose_bearer_may_live_is_not_taken(fleet):
    first, second = fleet.worker(worker_id="same"), fleet.worker(worker_id="same")
    await first.present()
    second.store.timeless = True
    await second.present()
    looking = fleet.worker()
    assert await names(looking) == sorted(["same", second.presence._name, "worker-2"])


# ---- what lies there


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 5000, b"0" * (2 << 20)])
async def test_a_file_that_nobody_understands_is_passed_over_and_counted(fleet, data):
    worker = fleet.worker()
    await fleet.store.put("workers/strange.json", data)
    await worker.present()
    reply = await worker("metrics")
    assert (reply["workers"], reply["unreadable"]) == (1, 1)


#: Figures, as a file may hold them, that nobody can tell along with others.
SPOILT = {
    "no name": ["not a name", "gauge", "?", []],
    "no type": ["worker_x", "mood", "?", []],
    "another's sample": ["worker_x", "gauge", "?", [["worker_running", {}, 1]]],
    "no label name": ["worker_x", "gauge", "?", [["worker_x", {"a b": "c"}, 1]]],
    "no number": ["worker_x", "gauge", "?", [["worker_x", {}, float("nan")]]],
    "below nothing": ["worker_x", "counter", "?", [["worker_x_total", {}, -1]]],
    "no label": ["worker_failures", "counter", "?", [["worker_failures_total", {}, 1]]],
    "no bound": [
        "worker_cancel_seconds",
        "histogram",
        "?",
        [["worker_cancel_seconds_bucket", {}, 1]],
    ],
    "a word for a bound": [
        "worker_cancel_seconds",
        "histogram",
        "?",
        [["worker_cancel_seconds_bucket", {"le": "x"}, 1]],
    ],
    "no extremes": [
        "worker_cancel_seconds",
        "histogram",
        "?",
        [["worker_cancel_seconds_count", {}, 1], ["worker_cancel_seconds_sum", {}, 1]],
    ],
    "no number for an extreme": [
        "worker_cancel_seconds",
        "histogram",
        "?",
        [],
        [[{}, float("nan"), 1]],
    ],
}


@pytest.mark.parametrize("fleet", ["local"], indirect=True)
@pytest.mark.parametrize("what", SPOILT)
async def test_figures_that_are_none_spoil_nobody_elses(fleet, what):
    strange, worker = fleet.worker(), fleet.worker()
    seen = json.loads(strange.presence.myself().model_dump_json())
    data = json.dumps(seen | {"families": [SPOILT[what]]}).encode()
    await fleet.store.put("workers/worker-0.json", data)
    reply = await worker("metrics")
    assert (reply["workers"], reply["unreadable"]) == (1, 1)
    text = (await worker("metrics", format="prometheus"))["text"]
    named = {s.labels["worker_id"] for f in text_string_to_metric_families(text) for s in f.samples}
    assert named == {"worker-1"}


@pytest.mark.parametrize("fleet", ["local"], indirect=True)
async def test_a_copy_of_a_file_is_no_other_worker(fleet):
    there, worker = fleet.worker(), fleet.worker()
    data = there.presence.myself().model_dump_json().encode()
    for key in ("workers/worker-0.json", "workers/worker-0-copy.json"):
        await fleet.store.put(key, data)
    reply = await worker("metrics")
    assert (reply["workers"], reply["unreadable"]) == (2, 1)


async def test_a_file_of_a_newer_worker_is_understood(fleet):
    newer, worker = fleet.worker(), fleet.worker()
    await newer.present()
    seen = json.loads((await fleet.store.get("workers/worker-0.json")).data)
    seen["families"].append(["worker_wonders", "counter", "?", [["worker_wonders_total", {}, 2]]])
    await fleet.store.put("workers/worker-0.json", json.dumps(seen | {"mood": "good"}).encode())
    assert "worker_wonders_total" in (await worker("metrics", format="prometheus"))["text"]
    assert (await worker("metrics"))["workers"] == 2


@pytest.mark.parametrize("fleet", ["local"], indirect=True)
async def test_of_the_dead_only_the_list_is_read_and_after_a_day_nothing_is_left(fleet, tmp_path):
    """A bucket that has seen 1500 workers come and go."""
    folder = tmp_path / "store" / "workers"
    folder.mkdir(parents=True)
    for number in range(1500):
        (folder / f"dead-{number}.json").write_bytes(b"{}")
        age = 3600 if number < 5 else 100_000
        os.utime(folder / f"dead-{number}.json", (time.time() - age,) * 2)
    worker, live = fleet.worker(), fleet.worker()
    await live.store.put("workers/worker-1.json", live.presence.myself().model_dump_json().encode())
    worker.store.forget_calls()
    assert (await worker("metrics"))["workers"] == 2
    assert len(worker.store.asked("list")) == 2
    assert len(worker.store.asked("get")) == 2  # the newest twice: once for the store's time
    await worker.present()
    await until(lambda: worker.store.asked("delete"))
    await until(lambda: len(list(folder.iterdir())) == 7)
