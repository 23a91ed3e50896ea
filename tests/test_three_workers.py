"""Three real workers of one endpoint: each tells of the others' processes, one cleans, one dies."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.endpoint import Endpoint
from tests.patience import PATIENCE
from tests.worker_process import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit import Reply
    from tests.worker_process import Worker

NAMES = ("w1", "w2", "w3")
#: What ended 5 s ago is old; who says nothing for 6 s is gone, and so is who runs a process.
QUICK = {
    "presence_seconds": 2,
    "clean_seconds": 2,
    "process_days": 5 / 86400,
    "lease_seconds": 6,
    "slots": 2,
}
#: Longer than the test.
LONG = {"seconds": 600, "steps": 6000, "checkpoint_every": 5, "print_lines": 5}


async def answer_when(
    endpoint: Endpoint, condition: Callable[[Reply], object], action: str, **fields: Any
) -> Reply:
    """What a worker answers, once it meets the condition."""
    async with asyncio.timeout(PATIENCE):
        while True:
            reply = await endpoint.ask(action, **fields)
            if "error" not in reply and condition(reply):
                return reply
            await asyncio.sleep(0.1)


def removed(workers: list[Worker]) -> list[str]:
    """Who said that it removed processes, once for each time."""
    lines = [(worker.id, line) for worker in workers for line in worker.output().splitlines()]
    said = [(name, json.loads(line)) for name, line in lines if '"cleaned"' in line]
    return [name for name, entry in said for _ in range(entry["removed"].get("processes", 0))]


def who(reply: Reply) -> list[str]:
    return sorted(row["name"] for row in reply["fleet"])


@pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)
async def test_three_workers_tell_of_each_other_clean_once_and_take_over(
    endpoint: Endpoint,
) -> None:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(endpoint.worker(name, **QUICK)) for name in NAMES
        ]
        await asyncio.gather(*(worker.wait_ready() for worker in workers))
        old = endpoint.start(only="w1")
        await endpoint.plane.finished(old.id)
        jobs = {name: endpoint.start(**LONG, only=name) for name in NAMES}
        await asyncio.gather(
            *(_log_is_seen_elsewhere(endpoint, job.id, name) for name, job in jobs.items())
        )
        await _figures_agree(endpoint)
        await endpoint.until(old.id, lambda record: record.deleted)
        await answer_when(
            endpoint,
            lambda reply: (
                sorted(row["process_id"] for row in reply["processes"])
                == sorted(job.id for job in jobs.values())
            ),
            "processes",
            only="w2",
        )
        await eventually(lambda: removed(workers), "the cleaner says what it did")
        await _another_takes_over(endpoint, workers[0], jobs["w1"].id)
        assert len(removed(workers)) == 1


async def _log_is_seen_elsewhere(endpoint: Endpoint, process_id: str, owner: str) -> None:
    """It prints before its first step."""
    other = NAMES[NAMES.index(owner) - 1]
    record = await endpoint.running(process_id, step=1)
    printed = time.monotonic()
    reply = await answer_when(
        endpoint,
        lambda reply: len(reply["lines"]) == LONG["print_lines"],
        "logs",
        process_id=process_id,
        only=other,
    )
    assert time.monotonic() - printed < 10
    assert record.writer.worker_id == owner
    assert (reply["status"], reply["ended"]) == ("running", False)


async def _figures_agree(endpoint: Endpoint) -> None:
    """Those of all are those of the three that run one process each, and ended one before."""
    reply = await answer_when(
        endpoint,
        lambda reply: who(reply) == [*NAMES] and reply["all_workers"]["running"] == len(NAMES),
        "metrics",
        only="w3",
    )
    assert (reply["workers"], reply["unreadable"]) == (3, 0)
    assert [row["running"] for row in reply["fleet"]] == [1, 1, 1]
    everyone = reply["all_workers"]
    assert everyone["attempts"] == {"sleep": 4}
    assert everyone["processes"] == {"completed": {"sleep": 1}}
    assert everyone["slots"] == len(NAMES) * QUICK["slots"]


async def _another_takes_over(endpoint: Endpoint, dying: Worker, process_id: str) -> None:
    dying.kill()
    seen = await answer_when(
        endpoint,
        lambda reply: reply["status"] == "interrupted",
        "process_status",
        process_id=process_id,
        only="w2",
    )
    assert seen["why"]["code"] == "worker_lost"
    await answer_when(endpoint, lambda reply: who(reply) == ["w2", "w3"], "metrics", only="w2")
    endpoint.plane.lose(dying.id)
    record = await endpoint.until(
        process_id, lambda record: record.attempt == 2 and record.status == "running"
    )
    assert record.writer.worker_id in ("w2", "w3")
    view = await endpoint.ask("process_status", process_id=process_id, only="w2")
    assert (view["status"], view["why"]) == ("running", None)
