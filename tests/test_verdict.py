"""How an attempt is judged, once its process has ended: every child here is a real one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from child import runner, verdict
from child.runner import Child
from child.verdict import Failed
from tests.children import UNRULY, attempt, failure_of, result_of


@pytest.fixture(autouse=True)
def _unruly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children also know the kinds of `unruly_jobs.py`."""
    monkeypatch.setattr(runner, "ENTRY", (UNRULY,))


async def test_a_python_exception_is_a_job_error_with_its_traceback(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, "raise_error", error="value")
    assert (failure.code, failure.message) == ("job_error", "ValueError: no good")
    assert failure.log_tail[-1] == "ValueError: no good"
    assert "Traceback (most recent call last):" in failure.log_tail


async def test_a_job_can_name_its_failure(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, "raise_error", error="named")
    assert (failure.code, failure.message) == ("dataset_empty", "No images.")
    assert failure.retryable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("memory", "host_out_of_memory"),
        ("cuda", "cuda_out_of_memory"),
        ("context", "cuda_out_of_memory"),
    ],
)
async def test_out_of_memory_has_codes_of_its_own(tmp_path: Path, error: str, code: str) -> None:
    assert (await failure_of(tmp_path, "raise_error", error=error)).code == code


async def test_a_non_zero_exit_is_a_failure_with_the_code(tmp_path: Path) -> None:
    """Trap 17: a non-zero exit was reported as success."""
    failure = await failure_of(tmp_path, "sleep", exit_code=3)
    assert (failure.code, failure.exit_code) == ("child_exited", 3)


async def test_a_non_zero_exit_after_the_result_is_a_failure_too(tmp_path: Path) -> None:
    """Trap 17 again: the job said it was done, and then its process failed."""
    failure = await failure_of(tmp_path, "complete_then_exit", exit_code=4)
    assert (failure.code, failure.exit_code) == ("child_exited", 4)


async def test_an_exit_without_a_result_is_a_failure(tmp_path: Path) -> None:
    assert (await failure_of(tmp_path, "sleep", exit_code=0)).code == "no_result"


async def test_a_process_that_stays_after_its_result_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "EXIT_SECONDS", 0.5)
    assert (await failure_of(tmp_path, "complete_but_linger")).code == "child_did_not_exit"


async def test_a_signal_is_named(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, "kill_itself", signal=signal.SIGSEGV)
    assert (failure.code, failure.signal) == ("child_killed", "SIGSEGV")
    assert any("Segmentation fault" in line for line in failure.log_tail)


@pytest.mark.parametrize(
    ("before", "after", "code", "words"),
    [
        (None, None, "host_out_of_memory", "most likely"),
        (3, 4, "host_out_of_memory", "The kernel killed it"),
        (3, 3, "child_killed", "SIGKILL"),
    ],
)
async def test_sigkill_by_others_is_blamed_on_memory_as_far_as_the_kernel_tells(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int | None,
    after: int | None,
    code: str,
    words: str,
) -> None:
    counter = tmp_path / "memory.events"
    monkeypatch.setattr(verdict, "OOM_COUNTERS", (counter,))
    if before is not None:
        counter.write_text(f"low 0\noom {before}\noom_kill {before}\n")
    child = await Child.spawn(attempt(tmp_path / "a", "kill_itself", signal=signal.SIGKILL))
    if after is not None:
        counter.write_text(f"low 0\noom {after}\noom_kill {after}\n")
    ended = await child.run(lambda _event: None)
    assert isinstance(ended, Failed)
    assert ended.failure.code == code
    assert words in ended.failure.message
    assert ended.failure.signal == "SIGKILL"


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("a set", "result_invalid"),
        ("huge", "result_too_large"),
    ],
)
async def test_a_result_is_small_json(tmp_path: Path, result: str, code: str) -> None:
    assert (await failure_of(tmp_path, "return_odd", result=result)).code == code


async def test_the_largest_result_fits(tmp_path: Path) -> None:
    largest = "x" * (256 * 1024 - 2)
    assert await result_of(tmp_path, "return_it", result=largest) == largest


async def test_a_job_that_stops_unasked_has_failed(tmp_path: Path) -> None:
    assert (await failure_of(tmp_path, "raise_error", error="stopped")).code == "stopped_unasked"


async def test_an_unknown_kind_is_a_failure(tmp_path: Path) -> None:
    assert (await failure_of(tmp_path, "slepe")).code == "kind_unknown"


async def test_invalid_params_are_a_failure_that_does_not_repeat_them(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, "sleep", steps="hunter2")
    assert failure.code == "params_invalid"
    assert "steps" in failure.message
    assert "hunter2" not in failure.model_dump_json()
