"""What the tests of the runner share: attempts, what becomes of processes, waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from child.forks import Template
from child.runner import Attempt, Child
from child.verdict import Completed, Failed, Failure, Verdict
from tests.patience import PATIENCE

UNRULY = str(Path(__file__).with_name("unruly_jobs.py"))


def unruly_entry(modules: str) -> tuple[str, ...]:
    """Arguments of the interpreter for a template that imports `modules`, with the unruly kinds."""
    return (str(Path(__file__).with_name("unruly_template.py")), modules)


async def unruly_template(modules: str = "torch") -> Template:
    """A template that is ready, and whose forks know the unruly kinds."""
    template = Template(unruly_entry(modules))
    template.start()
    await template.ready.wait()
    return template


def attempt(folder: Path, kind: str, /, **params: Any) -> Attempt:
    """A first attempt of `kind` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Attempt("p-1", kind, params, 1, folder, None, {})


async def run(folder: Path, kind: str, /, **params: Any) -> Verdict:
    """Run a child to its end."""
    child = await Child.spawn(attempt(folder, kind, **params))
    return await child.run(lambda _event: None)


async def result_of(folder: Path, kind: str, /, **params: Any) -> Any:
    """The result of a child that completes."""
    verdict = await run(folder, kind, **params)
    assert isinstance(verdict, Completed), verdict
    return verdict.result


async def failure_of(folder: Path, kind: str, /, **params: Any) -> Failure:
    """The failure of a child that fails."""
    verdict = await run(folder, kind, **params)
    assert isinstance(verdict, Failed), verdict
    return verdict.failure


async def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait for `condition`. The time-out only turns a hang into a sentence."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting until {what}"
        await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def exists(pid: int) -> bool:
    """Whether the process exists, be it as a zombie."""
    return Path(f"/proc/{pid}").exists()


def descendants(pid: int) -> set[int]:
    """All processes below `pid` at this moment."""
    parents = dict(_parents())
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {pid}
        found |= more


def _parents() -> Iterator[tuple[int, int]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        yield int(process.name), int(stat.rpartition(")")[2].split()[1])
