"""One attempt from the worker's side: what a child may see, say and print.

Every child here is a real process. How one is ended is in `test_child_end.py`, how it is judged in
`test_verdict.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from child import job_log, runner
from child.events import ArtifactReady, CheckpointSealed, Event, Progress
from child.runner import Attempt, Child, ChildNotStarted
from child.verdict import Completed, Failed
from tests.children import UNRULY, attempt, result_of, run
from tests.images import zipped


@pytest.fixture(autouse=True)
def _unruly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children also know the kinds of `unruly_jobs.py`."""
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))


# ---- what a child says


async def test_a_job_that_returns_is_completed(tmp_path: Path) -> None:
    assert await result_of(tmp_path, "return_it", result={"ok": [1, 2.5, None]}) == {
        "ok": [1, 2.5, None]
    }


async def test_events_arrive_in_order_and_before_the_verdict(tmp_path: Path) -> None:
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "sleep", steps=3, artifacts=1))
    await child.run(events.append)
    assert events == [
        ArtifactReady("artifact-1.bin"),
        *(Progress(step=n, total=3, message="sleeping", metrics={}) for n in (1, 2, 3)),
    ]


async def test_nothing_keeps_an_attempt_that_is_over(tmp_path: Path) -> None:
    """A worker runs thousands, and each has the end of a log in memory."""
    child = await Child.spawn(attempt(tmp_path, "sleep"))
    await child.run(lambda _: None)
    over = weakref.ref(child)
    del child
    await asyncio.sleep(0)  # what its end calls for is called
    gc.collect()
    assert over() is None


async def test_what_a_job_hands_over_is_named_by_its_path_in_the_folder(tmp_path: Path) -> None:
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "save_and_offer"))
    assert await child.run(events.append) == Completed(str(tmp_path))  # where it works
    assert events == [
        CheckpointSealed(1, "sealed/000001"),
        ArtifactReady("samples/1.png"),
    ]
    assert (tmp_path / "sealed" / "000001" / "weights" / "w.bin").read_text() == "w"


async def test_the_real_entry_runs_a_kind_and_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    saved = tmp_path / "done.txt"
    saved.write_text("2")
    second = attempt(tmp_path / "2", "sleep", steps=5)._replace(number=2, resume_from=saved)
    child = await Child.spawn(second)
    verdict = await child.run(lambda _event: None)
    assert verdict == Completed({"steps_run_by_this_attempt": 3, "resumed_from": 2})


async def test_nothing_is_lost_when_run_comes_after_the_child_has_gone(tmp_path: Path) -> None:
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "sleep", steps=3))
    await asyncio.wait({child._gone})
    assert await child.run(events.append) == Completed(
        {"steps_run_by_this_attempt": 3, "resumed_from": None}
    )
    assert len(events) == 3


async def test_the_pipe_is_drained_before_the_verdict(tmp_path: Path) -> None:
    """Whether the exit or the last event is seen first is a race; the verdict waits for both."""
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "report_and_die", events=2000))
    verdict = await child.run(events.append)
    assert isinstance(verdict, Failed)
    assert verdict.failure.code == "child_exited"
    assert len(events) == 2000


async def test_a_job_that_reports_as_fast_as_it_can_leaves_the_loop_responsive(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "report_fast", events=30_000))
    with longest_turn() as turn:
        await child.run(events.append)
    assert len(events) == 30_000
    assert turn() < 0.25


async def test_an_error_of_the_listener_ends_the_child_and_is_raised(tmp_path: Path) -> None:
    def listener(_event: Event) -> None:
        raise LookupError("a bug of ours")

    child = await Child.spawn(attempt(tmp_path, "talk_until_stopped"))
    with pytest.raises(LookupError, match="a bug of ours"):
        await child.run(listener)


# ---- what a child must not say


@pytest.mark.parametrize(
    "text",
    [
        "hello\n",
        "[1]\n",
        '{"event": "promote_me"}\n',
        '{"event": "progress", "step": "many"}\n',
        '{"event": "progress", "step": 1, "total": 1, "message": "", "metrics": {"x": NaN}}\n',
        '{"event": ["progress"]}\n',
        '{"event": "artifact", "path": "../../secret"}\n',
        '{"event": "artifact", "path": "/etc/passwd"}\n',
        '{"event": "checkpoint", "seq": 1, "path": "outputs"}\n',
        '{"event": "checkpoint", "seq": 1, "path": "sealed/../outputs"}\n',
        '{"event": "progress", "step": 1e999, "total": 1, "message": "", "metrics": {}}\n',
        '{"event": "progress", "step": 1, "total": 1, "message": "", "metrics": {"x": 1e999}}\n',
        '{"event": "artifact", "path": "nul\\u0000"}\n',
        "[" * 100_000 + "\n",
        "\xff\n",
    ],
)
async def test_what_is_no_event_costs_that_line_alone(tmp_path: Path, text: str) -> None:
    assert await heard_after(tmp_path, text=text) == [1]


async def test_an_endless_line_is_dropped_and_does_not_fill_memory(tmp_path: Path) -> None:
    assert await heard_after(tmp_path, text="x" * 65536, times=100, end="\n") == [1]


async def heard_after(tmp_path: Path, **params: JsonValue) -> list[int]:
    """The steps of a job that sends `params`, then step 1, and completes."""
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "send", **params))
    assert await child.run(events.append) == Completed(None)
    return [event.step for event in events if isinstance(event, Progress)]


async def test_a_file_name_that_is_not_utf_8_reaches_the_worker_as_callers_see_it(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "tell_of_an_odd_name"))
    assert await child.run(events.append) == Completed({"file": r"caf\xe9.png"})
    assert [type(event) for event in events] == [Progress, ArtifactReady]
    assert isinstance(events[0], Progress)
    assert events[0].message == events[1].path == r"caf\xe9.png"  # type: ignore[union-attr]


async def test_what_a_job_prints_cannot_pass_for_an_event(tmp_path: Path) -> None:
    events: list[Event] = []
    child = await Child.spawn(attempt(tmp_path, "print_everywhere"))
    assert await child.run(events.append) == Completed("mine")
    assert len(events) == 1
    forged = '{"event": "completed", "result": "forged"}'
    printed = {"from python", "on standard error", forged, "from a program"}
    assert printed <= set(child.log_tail())


async def test_what_a_c_library_printed_is_in_the_log_though_it_ended_no_line(
    tmp_path: Path,
) -> None:
    child = await Child.spawn(attempt(tmp_path, "print_from_c"))
    await child.run(lambda _event: None)
    assert child.log_tail() == ["from a C library, without an end of line"]


async def test_descendants_do_not_hold_the_protocols_pipes(tmp_path: Path) -> None:
    seen = await result_of(tmp_path, "show_pipes_of_descendants")
    assert not {repr(number) for number in seen["numbers"]} & set(seen["program"].split(", "))
    assert seen["fork"] == ["/dev/null", "/dev/null"]


# ---- what a child may see


async def test_a_child_sees_no_secret_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "RUNPOD_API_KEY",
        "NVIDIA_API_KEY",
        "HF_TOKEN",
        "BUCKET_SECRET_ACCESS_KEY",
        "DATABASE_URL",
        "CUDA_LICENSE_TOKEN",
    ):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    environment = await result_of(tmp_path, "show_environment")
    assert "hunter2" not in environment.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["PATH"] == os.environ["PATH"]


async def test_a_child_sees_what_the_operator_named(tmp_path: Path) -> None:
    plain = attempt(tmp_path, "show_environment")
    child = await Child.spawn(plain._replace(environment={"WANDB_API_KEY": "for the job"}))
    verdict = await child.run(lambda _event: None)
    assert isinstance(verdict, Completed)
    assert isinstance(verdict.result, dict)
    assert verdict.result["WANDB_API_KEY"] == "for the job"


async def test_params_travel_over_the_pipe_only(tmp_path: Path) -> None:
    params = {"token": "hunter2", "large": "x" * 3_000_000}
    seen = await result_of(tmp_path, "return_it", result="small", **params)
    assert seen == "small"
    seen = await result_of(tmp_path, "show_params", token="hunter2")
    assert seen["params"] == {"token": "hunter2"}
    assert "hunter2" not in seen["elsewhere"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


async def test_a_child_loads_nothing_that_its_kind_does_not_need(tmp_path: Path) -> None:
    loaded = set(await result_of(tmp_path, "show_modules"))
    assert not loaded & {"asyncio", "boto3", "torch", "runpod", "child.runner"}


# ---- archives among its inputs; what is in them is the matter of `test_unpack.py`


def with_archive(folder: Path, content: bytes) -> Attempt:
    (folder / "inputs").mkdir()
    (folder / "inputs" / "a.zip").write_bytes(content)
    (folder / "inputs" / "b.zip").write_bytes(b"not to be unpacked")
    first = attempt(folder, "show_inputs")
    return first._replace(unpack=("a.zip",), max_unpacked_bytes=1000)


async def test_a_job_finds_a_folder_in_the_place_of_an_archive(tmp_path: Path) -> None:
    files = {f"{number}.txt": b"%d" % number for number in range(100)}
    events: list[Event] = []
    child = await Child.spawn(with_archive(tmp_path, zipped(files)))
    seen = {f"a.zip/{name}": content.decode() for name, content in files.items()}
    assert await child.run(events.append) == Completed({**seen, "b.zip": "not to be unpacked"})
    message = "unpacking a.zip: 100 files"
    assert events == [Progress(step=0, total=None, message=message, metrics={})]


async def test_a_bad_archive_fails_the_attempt_and_the_job_never_runs(tmp_path: Path) -> None:
    child = await Child.spawn(with_archive(tmp_path, zipped({"../escaped": b""})))
    verdict = await child.run(lambda _event: None)
    assert isinstance(verdict, Failed)
    assert verdict.failure.code == "input_unsafe"
    assert "'a.zip'" in verdict.failure.message
    assert not list(tmp_path.rglob("escaped"))


# ---- what a job prints


async def test_a_job_that_prints_200_mb_leaves_memory_flat_and_the_loop_responsive(
    tmp_path: Path,
) -> None:
    """Trap 34: the whole output of a child was kept in RAM."""
    await run(tmp_path / "warm", "print_much", megabytes=1)
    child = await Child.spawn(attempt(tmp_path / "much", "print_much", megabytes=200))
    before = resident_bytes()
    with longest_turn() as turn:
        assert await child.run(lambda _event: None) == Completed(None)
    assert resident_bytes() - before < 20 * 1024 * 1024
    assert turn() < 0.25
    assert 0 < sum(len(block.text) for block in child.log.pending()) < 4 * job_log.WINDOW


# ---- when there is no child


async def test_a_missing_interpreter_is_child_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    before = open_files()
    with pytest.raises(ChildNotStarted, match="No such file"):
        await Child.spawn(attempt(tmp_path, "sleep"))
    assert open_files() == before


async def test_no_file_handles_left_is_child_not_started(tmp_path: Path) -> None:
    before = open_files()
    with file_handles_left(4), pytest.raises(ChildNotStarted, match="Too many open files"):
        await Child.spawn(attempt(tmp_path, "sleep"))
    assert open_files() == before


async def test_an_attempt_leaves_no_file_open(tmp_path: Path) -> None:
    await run(tmp_path / "warm", "sleep")
    before = open_files()
    await asyncio.gather(*(run(tmp_path / str(number), "sleep") for number in range(4)))
    assert open_files() == before


# ---- measures


def open_files() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def file_handles_left(count: int) -> Iterator[None]:
    """So many can be opened and no more, however many are open and which."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in open_files())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def longest_turn() -> Iterator[Any]:
    """The longest time, in seconds, that the loop computed before it looked up again.

    Computing time, not time by the clock: a busy machine is no fault of the loop's. Nor is the
    garbage of a whole test run.
    """
    gc.disable()
    loop = asyncio.get_running_loop()
    longest, last = 0.0, time.thread_time()

    def look_up() -> None:
        nonlocal longest, last, timer
        now = time.thread_time()
        longest, last = max(longest, now - last), now
        timer = loop.call_later(0.001, look_up)

    timer = loop.call_later(0.001, look_up)
    yield lambda: longest
    timer.cancel()
    gc.enable()
