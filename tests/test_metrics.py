"""The figures of workers: each agrees with what really happened."""

import asyncio
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from health.metrics import figures, merged
from records.keys import record_key
from records.record import Record
from storage import ObjectExists, StorageUnavailable
from stores.s3.store import S3Store
from tests.crowd import until
from tests.faulty_s3 import Fault, FaultyS3
from tests.fleet import GPUS, PRICE
from tests.servers import open_place, upload_file
from worker.meter import MAX_NAMES, OTHER, Extremes, Family, Meter, Sample

LONG = {"seconds": 60, "steps": 600}
ENDS = ("completed", "failed", "cancelled", "interrupted")
README = (Path(__file__).parent.parent / "README.md").read_text()


async def records_of(fleet, *names):
    stored = await asyncio.gather(*(fleet.store.get(record_key(name)) for name in names))
    return [Record.model_validate_json(each.data) for each in stored]


def total(requests):
    return {operation: sum(outcomes.values()) for operation, outcomes in requests.items()}


def by_reader(text):
    """The figures that Prometheus reads from `text`, summed over all workers."""
    families = []
    for family in text_string_to_metric_families(text):
        samples = [
            Sample(s.name, {k: v for k, v in s.labels.items() if k != "worker_id"}, s.value)
            for s in family.samples
        ]
        extremes = [Extremes(s.labels, 0.0, 0.0) for s in samples if s.name.endswith("_count")]
        head = (family.name, family.type, family.documentation)
        families.append(Family(*head, tuple(samples), tuple(extremes)))
    return without_extremes(figures(merged([family] for family in families)))


def without_extremes(told):
    """Prometheus's text has no place for them."""
    if not isinstance(told, dict):
        return told
    return {
        name: without_extremes(each)
        for name, each in told.items()
        if name not in ("min_seconds", "max_seconds")
    }


async def a_day_at_work(fleet):
    """Three workers: two ends of each sort, an interruption that another worker continues."""
    one, two, three = (fleet.worker() for _ in range(3))
    await asyncio.gather(
        one.start("done-1", seconds=0.3, steps=3, artifacts=2, artifact_bytes=1000),
        two.start("failed-1", steps=3, fail_at=2),
        three.start("done-2"),
    )
    await one.start("failed-2", exit_code=3)
    await one.running("cancelled-1", step=1)
    await two("cancel", process_id="cancelled-1")  # from elsewhere, by a note
    await two.running("cancelled-2", step=1)
    await two("cancel", process_id="cancelled-2")
    resumed = {"seconds": 2, "steps": 40, "checkpoint_every": 1}
    held = await one.running("resumed", step=2, **resumed)
    await one.manager.drain()
    await held
    assert (await three.start("resumed", **resumed))["attempt"] == 2
    await two("bulk_download", archive=True, process_id="zip", process_ids=["done-1"])
    return one, two, three


NAMES = (
    "done-1",
    "done-2",
    "failed-1",
    "failed-2",
    "cancelled-1",
    "cancelled-2",
    "resumed",
    "zip",
)


async def test_the_figures_of_three_workers_are_what_the_records_tell(fleet):
    workers = await a_day_at_work(fleet)
    for worker in workers[1:]:
        await worker.present()
    reply = await workers[0]("metrics")
    everyone, records = reply["all_workers"], await records_of(fleet, *NAMES)
    assert (reply["workers"], reply["unreadable"]) == (3, 0)
    history = [(record.kind, entry) for record in records for entry in record.history]
    ends = Counter((entry.status.value, kind) for kind, entry in history if entry.status in ENDS)
    told = everyone["processes"]
    assert {(s, k): n for s, kinds in told.items() for k, n in kinds.items()} == ends
    assert everyone["attempts"] == {"sleep": 8, "archive": 1}
    assert everyone["takeovers"] == {"interrupted": 1}
    assert everyone["failures"] == {"job_error": 1, "child_exited": 1}
    assert everyone["cancels"]["count"] == 2
    timings = [(r.kind, phases) for r in records for phases in r.timings.values()]
    for kind in ("sleep", "archive"):
        for phase in ("queued", "startup", "running", "upload"):
            spent = [each[phase] for name, each in timings if name == kind and phase in each]
            found = everyone["phases"][phase].get(kind, {"count": 0, "sum_seconds": 0})
            assert found["count"] == len(spent)
            assert found.get("sum_seconds", 0) == pytest.approx(sum(spent), abs=0.01)
    running = everyone["phases"]["running"]["sleep"]["sum_seconds"]
    assert everyone["gpu_seconds"] == {"sleep": pytest.approx(running * GPUS, abs=0.01)}
    busy = running + everyone["phases"]["startup"]["sleep"]["sum_seconds"]
    assert everyone["busy_seconds"] == pytest.approx(busy, abs=0.1)
    assert everyone["cost"] == pytest.approx(everyone["busy_seconds"] * PRICE / 3600, abs=0.001)
    assert (everyone["slots"], everyone["running"], everyone["queued"]) == (3, 0, 0)


async def test_every_request_to_the_store_is_counted_by_operation(fleet):
    for worker in await a_day_at_work(fleet):
        counted = total((await worker.figures())["store_requests"])
        assert counted == worker.requests
        assert sum(counted.values()) > 10


async def test_prometheus_reads_the_same_from_the_text(fleet):
    one, two, _ = await a_day_at_work(fleet)
    await two.present()
    reply, text = (
        await one("metrics", scope="worker"),
        await one("metrics", scope="worker", format="prometheus"),
    )
    assert by_reader(text["text"]) == without_extremes(reply["this_worker"])
    assert {
        s.labels["worker_id"]
        for f in text_string_to_metric_families(text["text"])
        for s in f.samples
    } == {"worker-0"}
    everyone = await one("metrics", format="prometheus")
    for name in ("processes", "attempts", "failures", "cancels", "phases", "gpu_seconds"):
        told = (await one("metrics"))["all_workers"][name]
        assert by_reader(everyone["text"])[name] == without_extremes(told)


@pytest.mark.parametrize("form", ["json", "prometheus"])
async def test_figures_name_no_process_and_no_secret(fleet, form):
    worker = fleet.worker()
    await worker("start", kind="sleep", process_id="a-name", labels={"for": "somebody"})
    await worker.running("another-name", step=1)
    text = json.dumps(await worker("metrics", format=form))
    assert "sleep" in text
    for word in ("a-name", "another-name", "somebody", str(worker.settings.scratch_dir)):
        assert word not in text


# ---- an end is counted once, by whoever wrote it


async def test_an_end_whose_answer_was_lost_is_counted_once(fleet):
    worker = fleet.worker()
    worker.store.lose_answer("replace", "/record.json", nth=None)
    assert (await worker.start("p"))["status"] == "completed"
    assert (await worker.figures())["processes"] == {"completed": {"sleep": 1}}


async def test_a_process_that_a_caller_gave_up_is_counted_by_the_worker_that_settled_it(fleet):
    owner, heir = fleet.worker(), fleet.heir()
    await owner.running("p")
    await owner.die()
    assert (await heir("cancel", process_id="p"))["status"] == "cancelled"
    told = await heir.figures()
    assert told["processes"] == {"cancelled": {"sleep": 1}}
    assert told["cancels"]["count"] == 1
    assert (told["attempts"], told["phases"]) == ({}, {})  # these were another's
    assert (await owner.figures())["processes"] == {}


async def test_a_process_that_died_too_often_is_counted_by_the_worker_that_gave_it_up(fleet):
    owner, heir = fleet.worker(), fleet.heir(max_attempts=1)
    await owner.running("p")
    await owner.die()
    await heir.start("p", **LONG)
    told = await heir.figures()
    assert (told["processes"], told["failures"]) == (
        {"failed": {"sleep": 1}},
        {"too_many_attempts": 1},
    )


async def test_an_end_that_a_dead_worker_owed_is_counted_by_the_one_that_pays(fleet):
    dead = fleet.worker()
    await dead.running("p", steps=20, seconds=1, fail_at=20)
    dead.store.away = True
    run = dead.runs()[0]
    await until(lambda: run.lease.desired.released)
    tries = len(dead.store.asked("replace"))
    await until(lambda: len(dead.store.asked("replace")) > tries + 2)  # it is in the journal now
    await dead.die()
    reborn = fleet.worker(scratch_dir=dead.settings.scratch_dir)
    await reborn.manager.recover()
    told = await reborn.figures()
    assert (told["processes"], told["failures"]) == ({"failed": {"sleep": 1}}, {"job_error": 1})


async def test_a_takeover_from_a_worker_that_died_is_counted_as_such(fleet):
    owner, heir = fleet.worker(), fleet.heir()
    params = {"steps": 4, "seconds": 1}
    await owner.running("p", **params)
    await owner.die()
    assert (await heir.start("p", **params))["attempt"] == 2
    told = await heir.figures()
    assert (told["takeovers"], told["attempts"]) == ({"lost": 1}, {"sleep": 1})


async def test_an_attempt_that_lost_its_process_is_no_end_but_its_seconds_count(fleet):
    owner, heir = fleet.worker(), fleet.heir()
    params = {"steps": 20, "seconds": 2}
    await owner.running("p", step=1, **params)
    owner.store.freeze()
    assert (await heir.start("p", **params))["status"] == "completed"
    lost = [run.task for run in owner.runs()]
    await owner.awake()
    await asyncio.wait(lost)
    told = await owner.figures()
    assert (told["processes"], told["running"]) == ({}, 0)
    assert told["phases"]["running"]["sleep"]["count"] == 1
    assert told["gpu_seconds"]["sleep"] > 0


async def test_what_a_running_child_costs_is_told_while_it_runs(fleet):
    worker = fleet.worker()
    await worker.running("p", step=2)
    told = await worker.figures()
    assert (told["running"], told["phases"].get("running")) == (1, None)
    assert told["gpu_seconds"]["sleep"] > 0
    assert told["cost"] > 0
    later = await worker.figures()
    assert later["gpu_seconds"]["sleep"] > told["gpu_seconds"]["sleep"]


async def test_a_cancel_is_as_old_as_its_note_was_when_it_was_read(fleet):
    """Also if the owner could not read it for long."""
    worker = fleet.worker()
    held = await worker.running("p", step=1)
    worker.store.later_seconds = 40
    await fleet.worker()("cancel", process_id="p")
    await held
    told = (await worker.figures())["cancels"]
    assert 40 <= told["sum_seconds"] < 60


# ---- the store


async def test_bytes_are_those_of_objects(place, tmp_path):
    meter = Meter()
    store = open_place(place, meter)
    await store.capabilities()
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 << 20))

    def moved():
        told = figures(meter.families())["store_bytes"]
        return told.get("up", 0), told.get("down", 0)

    up, down = moved()
    await store.put("a", b"12345")
    assert moved() == (up + 5, down)
    stored = await store.get("a")
    assert moved() == (up + 5, down + 5)
    assert (await store.get("a", cached=stored)).data == b"12345"
    assert moved() == (up + 5, down + 5)  # it did not travel again
    assert await store.get_range("a", offset=1, length=3) == b"234"
    assert moved() == (up + 5, down + 8)
    with pytest.raises(ObjectExists):
        await store.create("a", b"other")
    up, down = moved()
    await upload_file(store, source, "b")
    assert moved() == (up + (20 << 20), down)
    await store.download("b", tmp_path / "target")
    assert moved() == (up + (20 << 20), down + (20 << 20))
    await store.close()


async def test_what_became_of_a_request_is_counted_with_it(ceph):
    with FaultyS3(ceph.endpoint_url) as proxy:
        meter = Meter()
        place = {**ceph.place(), "endpoint_url": proxy.url}
        store = S3Store(**place, read_timeout=1.5, retry_seconds=1.0, meter=meter)
        await store.capabilities()
        faults = {
            Fault.LOST_ANSWER: "no_answer",
            Fault.LOST_REQUEST: "no_answer",
            Fault.SLOW_DOWN: "throttled",
            Fault.FAILED_AFTER: "server_error",
            Fault.TRUNCATED: "no_answer",
        }
        for fault, outcome in faults.items():
            before = figures(meter.families())["store_requests"].get("ListObjectsV2", {})
            asked = len(proxy.asked)
            proxy.rule = lambda _, fault=fault: fault
            with pytest.raises(StorageUnavailable):
                await store.list("processes/")
            after = figures(meter.families())["store_requests"].get("ListObjectsV2", {})
            repeated = len(proxy.asked) - asked
            assert repeated > 1
            assert after.get(outcome, 0) - before.get(outcome, 0) == repeated, fault
            assert sum(after.values()) - sum(before.values()) == repeated, fault
        await store.close()


def test_counting_from_many_threads_loses_nothing():
    meter = Meter()

    def work(_):
        for _ in range(2000):
            meter.asked("GetObject", "ok")
            meter.moved("down", 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    told = figures(meter.families())
    assert told["store_requests"] == {"GetObject": {"ok": 16_000}}
    assert told["store_bytes"] == {"down": 48_000}


# ---- the figures themselves


def test_names_that_a_job_invents_are_bounded():
    meter = Meter()
    meter.ended("sleep", "failed", "Not A Code: hf_secret")
    for number in range(10_000):
        meter.ended("sleep", "failed", f"code_{number}")
    failures = figures(meter.families())["failures"]
    assert len(failures) <= MAX_NAMES
    assert sum(failures.values()) == 10_001
    assert failures[OTHER] > 9000


def test_without_a_price_there_is_no_cost():
    assert figures(Meter().families())["cost"] is None


def test_one_duration_is_told_as_it_was():
    """Quantiles of buckets told one of 351 s as 600 and 870."""
    meter = Meter()
    meter.phase_ended("sleep", "running", 351, of_child=False)
    assert figures(meter.families())["phases"]["running"]["sleep"] == {
        "count": 1,
        "sum_seconds": 351,
        "mean_seconds": 351,
        "min_seconds": 351,
        "max_seconds": 351,
    }


def test_durations_of_many_workers_are_told_together():
    meters = [Meter(), Meter()]
    for meter, seconds in zip(meters, (2, 40_000), strict=True):
        meter.phase_ended("sleep", "running", seconds, of_child=False)
        meter.cancelled(seconds)
    told = figures(merged(meter.families() for meter in meters))
    assert (
        told["cancels"]
        == told["phases"]["running"]["sleep"]
        == {
            "count": 2,
            "sum_seconds": 40_002,
            "mean_seconds": 20_001,
            "min_seconds": 2,
            "max_seconds": 40_000,
        }
    )


def test_the_readme_names_every_metric_and_no_other():
    rows = README.split("## Metrics")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(worker_\w+)`", rows, re.MULTILINE)
    families = Meter(price_per_hour=1).families()
    exposed = [each.name + "_total" * (each.type == "counter") for each in families]
    assert sorted(named) == sorted(exposed)
