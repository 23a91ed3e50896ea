"""Traps 30 to 35 of DESIGN section 10, those of running a worker: one test for each."""

import ast
import os
from datetime import UTC, timedelta

import pynvml

from child import runner
from jobs import JOBS
from records.record import Record
from tests import preparing_job
from tests.crowd import on_every_store
from tests.test_health import Driver
from tests.test_house import PACKAGES, ROOT


@on_every_store
async def test_trap_30_setting_up_is_no_matter_of_the_event_loop_and_is_tried_again(
    crowd, tmp_path, monkeypatch
):
    """It happens in the job's own process; one that failed is begun anew."""
    monkeypatch.setitem(JOBS, "prepares", preparing_job.KINDS["prepares"])
    monkeypatch.setattr(runner, "ENTRY", (preparing_job.__file__,))
    log, fails = tmp_path / "log", tmp_path / "fails"
    fails.touch()
    for name, value in {"PREPARED_LOG": log, "PREPARE_SECONDS": 0, "PREPARE_FAILS": fails}.items():
        monkeypatch.setenv(name, str(value))
    worker = crowd.worker(
        prepare_dir=tmp_path / "volume", child_env="PREPARED_LOG,PREPARE_SECONDS,PREPARE_FAILS"
    )
    assert (await worker("start", "p", kind="prepares"))["status"] == "failed"
    fails.unlink()
    assert (await worker("start", "p", kind="prepares"))["status"] == "completed"
    pids = log.read_text().split()
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def test_trap_31_no_missing_module_is_hidden():
    """`except ImportError` with something to fall back on hid that half the code was missing."""
    sources = [*ROOT.glob("*.py"), *(p for name in PACKAGES for p in (ROOT / name).glob("*.py"))]
    assert sources
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                assert not caught & {"ImportError", "ModuleNotFoundError"}, path


@on_every_store
async def test_trap_32_every_time_is_utc_and_says_so(crowd):
    await crowd.worker().start("p")
    record = await crowd.record("p")
    times = [
        record.created_at,
        record.started_at,
        record.updated_at,
        record.finished_at,
        *(entry.at for entry in record.history),
    ]
    assert len(times) > 6
    assert {time.utcoffset() for time in times} == {timedelta(0)}
    assert Record.model_validate_json(record.encode()).created_at.tzinfo == UTC


async def test_trap_33_free_gpu_memory_is_the_devices_not_this_processes(crowd, monkeypatch):
    """Another program holds 73 GiB of the card: this one has allocated nothing, and says 7 free."""
    Driver().install(monkeypatch)
    [card] = (await crowd.worker()("health"))["gpu"]["devices"]
    assert card["free_bytes"] == pynvml.nvmlDeviceGetMemoryInfo(0).free == 7 << 30


async def test_trap_35_health_is_not_a_word_but_what_was_found(crowd):
    worker = crowd.worker()
    worker.store.away = True
    reply = await worker("health")
    assert reply["status"] == "broken"
    assert "switched the store off" in reply["reasons"][0]["message"]
    worker.store.away = False
    assert (await worker("health"))["status"] == "ready"
