"""Attempts that are forked from a template: as clean as others, and never needed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from child import forks, runner
from child.forks import MAX_STARTS, Template
from child.guardian import children
from child.runner import Child
from child.verdict import Completed
from tests.children import UNRULY, attempt, is_running, unruly_template, until
from tests.crowd import on_every_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def template(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Template]:
    """One that is ready."""
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))
    template = await unruly_template()
    yield template
    template.close()


async def result_of(template: Template, folder: Path, kind: str, /, **changes: Any) -> Any:
    child = await Child.spawn(attempt(folder, kind)._replace(**changes), template=template)
    verdict = await child.run(lambda _event: None)
    assert isinstance(verdict, Completed), verdict
    return verdict.result


async def test_a_fork_finds_torch_imported_and_cuda_untouched(
    template: Template, tmp_path: Path
) -> None:
    state = await result_of(template, tmp_path, "show_start")
    assert state["torch_was_imported"] is True
    assert state["cuda_was_initialized"] is False


async def test_a_fork_is_a_child_of_the_worker_in_a_session_of_its_own(
    template: Template, tmp_path: Path
) -> None:
    child = await Child.spawn(attempt(tmp_path, "show_start"), template=template)
    verdict = await child.run(lambda _event: None)
    assert isinstance(verdict, Completed)
    assert isinstance(verdict.result, dict)
    assert verdict.result["guardian"] == child.pid
    assert verdict.result["session"] == child.pid
    assert verdict.result["parent_of_guardian"] == os.getpid()


async def test_a_fork_sees_its_own_environment_and_nothing_of_the_templates(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "secret")
    seen = await result_of(template, tmp_path, "show_environment", environment={"MINE": "1"})
    assert seen["MINE"] == "1"
    assert "RUNPOD_AI_API_KEY" not in seen


async def test_if_memory_runs_out_the_template_goes_first_and_a_fork_is_like_the_worker(
    template: Template, tmp_path: Path
) -> None:
    assert Path(f"/proc/{template.pid}/oom_score_adj").read_text() == "1000\n"
    state = await result_of(template, tmp_path, "show_start")
    assert state["guardians_oom_score"] == Path("/proc/self/oom_score_adj").read_text()


BREAKS_IN_BETWEEN = """
import os
from jobs import template

def broken(*_):
    raise ValueError("out of place")
os.write = broken
try:
    pid = template._fork_twice()
except ValueError:
    print("it went on as if it were the template")
else:
    print(pid) if pid else os._exit(0)
"""


def test_what_is_raised_between_two_forks_ends_only_the_process_in_between() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BREAKS_IN_BETWEEN], capture_output=True, text=True
    )
    assert (ended.stdout, ended.returncode) == ("-1\n", 0)


async def test_two_forks_draw_different_numbers(template: Template, tmp_path: Path) -> None:
    first = await result_of(template, tmp_path / "1", "show_start")
    second = await result_of(template, tmp_path / "2", "show_start")
    assert first["numbers"] != second["numbers"]


async def test_many_forks_at_a_time_get_their_own_pipes(template: Template, tmp_path: Path) -> None:
    starts = [
        result_of(template, tmp_path / str(n), "return_it", params={"result": n}) for n in range(12)
    ]
    assert await asyncio.gather(*starts) == list(range(12))


async def test_without_a_template_that_is_ready_a_child_is_spawned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))
    assert (await result_of(Template(), tmp_path, "show_start"))["torch_was_imported"] is False


async def test_a_template_that_was_killed_is_done_without_and_begun_anew(
    template: Template, tmp_path: Path
) -> None:
    assert template._process is not None
    killed = template._process.pid
    os.kill(killed, signal.SIGKILL)
    await until(lambda: not is_running(killed), "the template is gone")
    for number in range(3):  # one of them notices, and none fails
        await result_of(template, tmp_path / str(number), "show_environment")
    await template.ready.wait()
    assert (await result_of(template, tmp_path / "n", "show_start"))["torch_was_imported"] is True


async def test_a_template_that_dies_over_a_request_costs_nobody_an_attempt(
    template: Template, tmp_path: Path
) -> None:
    assert template._process is not None
    stopped = template._process.pid
    os.kill(stopped, signal.SIGSTOP)
    spawning = asyncio.create_task(result_of(template, tmp_path, "show_start"))
    await until(template._turn.locked, "it was asked")
    os.kill(stopped, signal.SIGKILL)
    assert (await spawning)["torch_was_imported"] is False


DIES_OVER_A_FORK = """
import os, signal
from jobs import template

fork = template._fork_twice
def fork_and_die():
    pid = fork()
    if pid:
        os.kill(os.getpid(), signal.SIGKILL)
    return pid
template._fork_twice = fork_and_die
template.PRELOADED = ()
template.main()
"""


async def test_a_fork_of_which_nobody_hears_leaves_no_zombie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))
    before = set(children())
    template = Template(("-c", DIES_OVER_A_FORK))
    template.start()
    await template.ready.wait()
    await result_of(template, tmp_path, "show_environment")  # spawned, as there was no answer
    template.close()
    await until(lambda: set(children()) <= before, "the fork and the templates are reaped")
    assert set(children()) <= before


async def test_a_template_that_cannot_start_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))
    broken = Template(("-c", "import sys; sys.exit(1)"))
    broken.start()
    for number in range(MAX_STARTS + 2):
        await until(lambda: broken._process is None, "it has ended")
        await result_of(broken, tmp_path / str(number), "show_environment")
    assert broken._starts == MAX_STARTS


async def test_a_spawn_that_is_cancelled_leaves_no_fork(template: Template, tmp_path: Path) -> None:
    assert template._process is not None
    before = children_of(os.getpid())
    os.kill(template._process.pid, signal.SIGSTOP)  # it will fork, but later
    task = asyncio.create_task(Child.spawn(attempt(tmp_path, "sleep"), template=template))
    await asyncio.sleep(0)
    await until(template._turn.locked, "it was asked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.kill(template._process.pid, signal.SIGCONT)
    await result_of(template, tmp_path / "next", "show_environment")
    await until(lambda: children_of(os.getpid()) <= before, "the fork is gone")


def children_of(pid: int) -> set[int]:
    from tests.children import _parents

    return {child for child, parent in _parents() if parent == pid and is_running(child)}


@on_every_store
async def test_a_worker_runs_processes_on_forks(crowd: Any) -> None:
    """The whole way: start, cancel, take over; a worker that has a template does all the same."""
    worker = crowd.worker(template=True)
    template = worker.manager.parts.kept.plain
    template.start()
    await template.ready.wait()
    assert (await worker.start("a", steps=3))["status"] == "completed"
    task = await worker.running("b")
    [child] = worker.children()
    assert type(child._guardian).__name__ == "Forked"
    assert (await worker("cancel", process_id="b"))["status"] == "cancelled"
    assert (await task)["status"] == "cancelled"
    template.close()


IS_NEVER_READY = "import signal; signal.pause()"


async def test_a_worker_answers_and_starts_processes_while_its_template_still_imports(
    crowd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "ENTRY", ("-c", IS_NEVER_READY))
    worker = crowd.worker(template=True)
    template = worker.manager.parts.kept.plain
    template.start()
    assert "error" not in await worker("health")
    assert (await worker("process_status", process_id="a"))["status"] == "not_found"
    task = await worker.running("a")
    [child] = worker.children()
    assert isinstance(child._guardian, subprocess.Popen)
    await worker("cancel", process_id="a")
    assert (await task)["status"] == "cancelled"
    assert is_running(template.pid)
    assert not template.begun.is_set()
    template.close()
