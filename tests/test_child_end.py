"""How an attempt is ended: asked, signalled, killed, or orphaned. Nothing of it may remain.

Every test uses real processes, among them one that ignores SIGTERM and a daemon in a session of
its own, and waits until they are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from child import runner
from child.events import Event, Progress
from child.runner import Child
from child.verdict import Completed, Failed, Stopped, Verdict
from tests.children import (
    UNRULY,
    attempt,
    descendants,
    exists,
    is_running,
    unruly_template,
    until,
)

WORKER = Path(__file__).with_name("killable_worker.py")


class Running(NamedTuple):
    """A child whose job has come to its first progress."""

    child: Child
    verdict: asyncio.Task[Verdict]
    first: Progress
    #: The guardian, the job and everything they had started by then.
    processes: set[int]


Start = Callable[..., Any]


@pytest.fixture(params=["spawned", "forked"])
async def start(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Start a child, by itself or as a fork of a template, and wait for its first progress."""
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))
    children: list[Child] = []
    template = await unruly_template(modules="") if request.param == "forked" else None

    async def start(kind: str, /, **params: Any) -> Running:
        folder = tmp_path / str(len(children))
        child = await Child.spawn(attempt(folder, kind, **params), template=template)
        children.append(child)
        first: asyncio.Future[Progress] = asyncio.get_running_loop().create_future()

        def hear(event: Event) -> None:
            if isinstance(event, Progress) and not first.done():
                first.set_result(event)

        verdict = asyncio.create_task(child.run(hear))
        await asyncio.wait({first, verdict}, return_when="FIRST_COMPLETED")
        assert first.done(), verdict.result()
        return Running(child, verdict, first.result(), {child.pid, *descendants(child.pid)})

    yield start
    for child in children:
        await child.kill()
    if template:
        template.close()


# ---- asked


async def test_a_job_that_looks_ends_at_once(start: Start) -> None:
    running = await start("sleep", steps=1_000_000, seconds=100_000)
    await running.child.stop(grace_seconds=600)
    assert await running.verdict == Stopped()


async def test_a_job_that_returns_before_it_notices_is_completed(start: Start) -> None:
    running = await start("finish_anyway")
    await running.child.stop(grace_seconds=600)
    assert await running.verdict == Completed("done")


async def test_a_job_that_does_not_look_gets_sigterm_which_raises_in_its_main_thread(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ASK_SHARE", 0)
    running = await start("count_stops", more=0)
    await running.child.stop(grace_seconds=600)
    assert await running.verdict == Completed([True])


async def test_sigterm_raises_only_once(start: Start) -> None:
    """So that a job can save its work in `except JobStopped` undisturbed."""
    running = await start("count_stops", more=20)
    os.killpg(running.child.pid, signal.SIGTERM)
    assert await running.verdict == Completed([True])


async def test_sigterm_does_not_cut_an_event_in_two(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ASK_SHARE", 0)
    running = await start("talk_until_stopped")
    await running.child.stop(grace_seconds=600)
    assert await running.verdict == Stopped()


async def test_stop_is_idempotent_and_may_be_called_by_many(start: Start) -> None:
    running = await start("sleep", steps=1_000_000, seconds=100_000)
    await asyncio.gather(*(running.child.stop(grace_seconds=600) for _ in range(5)))
    assert await running.verdict == Stopped()
    await running.child.stop(grace_seconds=600)
    await running.child.kill()
    assert await running.verdict == Stopped()


async def test_ctrl_c_is_not_for_the_child(start: Start) -> None:
    running = await start("finish_anyway")
    os.killpg(running.child.pid, signal.SIGINT)
    await running.child.stop(grace_seconds=600)
    assert await running.verdict == Completed("done")


# ---- forced


STUBBORN = {"steps": 1_000_000, "seconds": 10_000, "ignore_sigterm": True, "spawn_grandchild": True}


@pytest.mark.parametrize(
    ("kind", "params", "processes"),
    [("sleep", STUBBORN, 3), ("have_descendants", {"then": "hang in C"}, 7)],
)
async def test_a_stubborn_job_and_all_its_descendants_are_gone_after_the_grace(
    start: Start, kind: str, params: dict[str, Any], processes: int
) -> None:
    running = await start(kind, **params)
    assert len(running.processes) == processes
    await running.child.stop(grace_seconds=0.5)
    assert not any(map(exists, running.processes))
    assert await running.verdict == Stopped()


@pytest.mark.parametrize("then", ["wait", "stop", "hang in C"])
async def test_kill_leaves_nobody_not_even_a_daemon_or_a_zombie(start: Start, then: str) -> None:
    running = await start("have_descendants", then=then)
    await running.child.kill()
    assert not any(map(exists, running.processes))
    assert await running.verdict == Stopped()


async def test_kill_also_ends_a_child_that_has_not_come_to_its_job(tmp_path: Path) -> None:
    child = await Child.spawn(attempt(tmp_path, "sleep", seconds=100_000))
    await child.kill()
    assert not exists(child.pid)
    assert await child.run(lambda _event: None) == Stopped()


async def test_descendants_that_hold_the_pipes_cannot_keep_the_verdict_from_coming(
    start: Start,
) -> None:
    running = await start("have_descendants", then="return")
    assert await running.verdict == Completed(None)
    assert not any(map(exists, running.processes))


async def test_cancelling_run_kills_the_child(start: Start) -> None:
    running = await start("have_descendants", then="wait")
    running.verdict.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running.verdict
    await until(lambda: not any(map(exists, running.processes)), "all are gone")


async def test_children_at_the_same_time_do_not_disturb_each_other(start: Start) -> None:
    first, second = await asyncio.gather(
        start("finish_anyway"), start("have_descendants", then="wait")
    )
    await second.child.kill()
    assert all(map(is_running, first.processes))
    await first.child.stop(grace_seconds=600)
    assert await first.verdict == Completed("done")


# ---- by others


async def test_if_the_guardian_is_killed_the_rest_of_its_group_is_too(start: Start) -> None:
    running = await start("have_descendants", then="wait")
    group = {pid for pid in running.processes if os.getpgid(pid) == running.child.pid}
    assert len(group) == 6
    os.kill(running.child.pid, signal.SIGKILL)
    verdict = await running.verdict
    assert isinstance(verdict, Failed)
    assert verdict.failure.signal == "SIGKILL"
    assert not any(map(exists, group))
    for daemon in running.processes - group:  # out of reach: the one thing the guardian is for
        os.kill(daemon, signal.SIGKILL)
        os.waitpid(daemon, 0)


async def test_a_guardian_that_somebody_stopped_still_does_its_duty(start: Start) -> None:
    running = await start("have_descendants", then="wait")
    os.kill(running.child.pid, signal.SIGSTOP)
    await running.child.kill()
    assert not any(map(exists, running.processes))


@pytest.mark.parametrize("then", ["wait", "stop", "hang in C"])
@pytest.mark.parametrize("also_stopped", ["nobody", "guardian", "group"])
async def test_all_of_it_dies_when_the_worker_is_killed(
    tmp_path: Path, then: str, also_stopped: str
) -> None:
    with worker(tmp_path, then) as shown:
        if also_stopped == "guardian":
            os.kill(shown["guardian"], signal.SIGSTOP)
        if also_stopped == "group":
            os.killpg(shown["guardian"], signal.SIGSTOP)
    everybody = [shown["guardian"], *shown["below"]]
    assert len(everybody) == 7
    await until(lambda: not any(map(is_running, everybody)), "all are gone")


async def test_a_fork_of_the_killed_worker_cannot_keep_its_children_alive(tmp_path: Path) -> None:
    """RunPod's SDK has one, for its heartbeat. Forks hold the pipes that their parent held."""
    with worker(tmp_path, "wait", "fork") as shown:
        pass
    try:
        everybody = [shown["guardian"], *shown["below"]]
        await until(lambda: not any(map(is_running, everybody)), "all are gone")
        assert is_running(shown["fork"])  # it held the pipes all along
    finally:
        os.kill(shown["fork"], signal.SIGKILL)


@contextlib.contextmanager
def worker(*arguments: object) -> Iterator[dict[str, Any]]:
    """What `killable_worker.py` shows once its child is up. It is killed on leaving."""
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()
