"""`health` tells what is: of the store, the disk, the GPUs, and what to change."""

import asyncio
import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from cli import doctor
from health import checks
from health.checks import Finding, judge_gpus, judge_mount, judge_store, try_disk, worst
from health.examine import Examiner
from health.versions import API, WORKER
from programs.declaration import read_programs
from storage import Capabilities, StoreHealth
from stores.local.store import LocalStore
from stores.probe import NO_LINKS_TO_WRITE
from tests.crowd import on_every_store
from tests.kit import Caller, settings
from worker.gpus import Gpu, Gpus, see_gpus
from worker.volume import Mount

ROOT = Path(__file__).parent.parent
CAN_ALL = Capabilities(conditional_writes=True, presign=True, multi_delete=True, write_links=True)
#: Neither lacks anything that callers miss.
on_able_stores = pytest.mark.parametrize("crowd", ["local", "strict"], indirect=True)
FINE = StoreHealth(
    ok=True, message="s3://b/ was written", round_trip_ms=3.0, clock_offset_seconds=0.1
)


def by_check(findings):
    return {finding.check: finding for finding in findings}


# ---- judging, without a machine


def test_a_store_that_works_is_ok():
    assert worst(judge_store(FINE, CAN_ALL)) == "ok"


def test_a_store_that_does_not_tell_the_time_is_degraded_and_says_what_follows():
    found = by_check(judge_store(FINE._replace(clock_offset_seconds=None), CAN_ALL))["clock"]
    assert found.verdict == "degraded"
    assert "nothing expires" in found.message


def test_a_store_that_does_not_work_is_broken_and_says_what_it_said():
    away = StoreHealth(
        ok=False, message="503 SlowDown", round_trip_ms=None, clock_offset_seconds=None
    )
    [found] = judge_store(away, None)
    assert (found.verdict, found.message) == ("broken", "503 SlowDown")
    assert found.next_step


def test_what_a_store_lacks_is_degraded_a_finding_each():
    lacking = CAN_ALL._replace(degraded=("no conditions", "no links"))
    found = [f.message for f in judge_store(FINE, lacking) if f.verdict == "degraded"]
    assert found == ["no conditions", "no links"]


@pytest.mark.parametrize(
    ("offset", "verdict"), [(2.0, "ok"), (-90.0, "degraded"), (1000.0, "broken")]
)
def test_a_clock_that_is_wrong_is_said_before_signatures_fail(offset, verdict):
    found = by_check(judge_store(FINE._replace(clock_offset_seconds=offset), CAN_ALL))["clock"]
    assert found.verdict == verdict


def gpu(number=0, free=20 << 30):
    return Gpu(
        number=number,
        uuid=f"GPU-{number}",
        name="H100",
        total_bytes=80 << 30,
        free_bytes=free,
        busy_percent=0,
    )


def test_no_gpu_is_no_fault_where_none_was_given():
    assert worst(judge_gpus(Gpus(), expected=0)) == "ok"


def test_a_gpu_that_is_gone_is_broken():
    [found] = judge_gpus(Gpus((gpu(),), "600.1", "13.0"), expected=2)
    assert found.verdict == "broken"
    assert "1 of 2" in found.message


def test_a_driver_that_does_not_answer_is_broken():
    assert worst(judge_gpus(Gpus(error="the GPU's driver does not answer"), expected=0)) == "broken"


def test_memory_is_told_as_the_device_has_it():
    [found] = judge_gpus(Gpus((gpu(free=5 << 30),), "600.1", "13.0"), expected=1)
    assert "5120 of 81920 MiB free" in found.message
    assert "CUDA 13.0" in found.message


# ---- the driver's answers


class Driver:
    """What NVML answers, for one card."""

    class Memory:
        total, free, used = 80 << 30, 7 << 30, 73 << 30

    def install(self, monkeypatch, **changes):
        answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13020,
            "nvmlSystemGetDriverVersion": lambda: "610.47",
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda _: self.Memory,
            "nvmlDeviceGetUUID": lambda _: "GPU-1",
            "nvmlDeviceGetName": lambda _: b"H100",
            "nvmlDeviceGetUtilizationRates": refuse(pynvml.NVML_ERROR_NOT_SUPPORTED),
        }
        for name, answer in (answers | changes).items():
            monkeypatch.setattr(pynvml, name, answer)


def refuse(code):
    def call(*_):
        raise pynvml.NVMLError(code)

    return call


def test_what_the_driver_says_is_what_is_told(monkeypatch):
    Driver().install(monkeypatch)
    seen = see_gpus()
    assert (seen.driver, seen.cuda, seen.error) == ("610.47", "13.2", None)
    [card] = seen.devices
    assert (card.name, card.free_bytes, card.busy_percent) == ("H100", 7 << 30, None)


def test_what_each_program_on_a_card_holds_is_known_here_and_not_told(monkeypatch):
    programs = [SimpleNamespace(pid=7, usedGpuMemory=5), SimpleNamespace(pid=8, usedGpuMemory=None)]
    Driver().install(monkeypatch, nvmlDeviceGetComputeRunningProcesses=lambda _: programs)
    seen = see_gpus()
    assert seen.devices[0].held_bytes == {7: 5, 8: 0}
    assert "held_bytes" not in json.dumps(seen.as_json())


def test_a_card_that_fell_off_the_bus_is_an_error_and_no_exception(monkeypatch):
    Driver().install(monkeypatch, nvmlDeviceGetMemoryInfo=refuse(pynvml.NVML_ERROR_GPU_IS_LOST))
    assert "GPU" in see_gpus().error


def test_without_a_driver_there_is_no_gpu_and_no_error(monkeypatch):
    Driver().install(monkeypatch, nvmlInit=refuse(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert see_gpus() == Gpus()


@on_able_stores
async def test_a_gpu_that_vanishes_makes_a_worker_broken(crowd, monkeypatch):
    driver = Driver()
    driver.install(monkeypatch)
    worker = crowd.worker()
    assert (await worker("health"))["status"] == "ready"
    driver.install(monkeypatch, nvmlDeviceGetCount=lambda: 0)
    reply = await worker("health")
    assert reply["status"] == "broken"
    assert "0 of 1 GPUs" in reply["reasons"][0]["message"]


async def test_a_worker_of_the_role_control_misses_no_gpu(crowd, monkeypatch):
    Driver().install(monkeypatch, nvmlDeviceGetCount=refuse(pynvml.NVML_ERROR_UNKNOWN))
    assert (await crowd.worker(role="control")("health"))["status"] == "ready"
    assert (await crowd.worker()("health"))["status"] == "broken"


# ---- the disk


def test_a_disk_is_written_and_read(tmp_path):
    assert try_disk(tmp_path / "new", 0).verdict == "ok"
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_is_nearly_full_is_degraded(tmp_path):
    assert try_disk(tmp_path, 1 << 60).verdict == "degraded"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "is read-only"), (errno.EIO, "refuses writes")],
)
def test_a_disk_that_takes_nothing_says_why_and_what_to_do(tmp_path, monkeypatch, number, words):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    found = try_disk(tmp_path, 0)
    assert (found.verdict, words in found.message) == ("broken", True)
    assert "WORKER_SCRATCH_DIR" in found.next_step


# ---- of a worker


@on_able_stores
async def test_a_worker_that_has_everything_is_ready_busy_or_draining(crowd):
    worker = crowd.worker()
    reply = await worker("health")
    assert (reply["status"], reply["reasons"]) == ("ready", [])
    assert reply["versions"]["runpod"]
    assert (reply["api"], reply["versions"]["worker"]) == (API, WORKER)
    assert reply["disk"]["free_bytes"] > 0
    task = await worker.running("p")
    reply = await worker("health")
    assert (reply["status"], reply["running"], reply["queued"]) == ("busy", 1, 0)
    draining = worker.manager.drain()
    await draining
    assert (await worker("health"))["status"] == "draining"
    await task


@on_every_store
async def test_a_store_that_answers_nothing_is_said_and_jobs_go_on(crowd):
    worker = crowd.worker()
    task = await worker.running("p", seconds=2, steps=20)
    worker.store.away = True
    reply = await worker("health")
    assert reply["status"] == "broken"
    assert reply["running"] == 1
    worker.store.away = False
    assert (await task)["status"] == "completed"


@on_able_stores
async def test_a_deep_check_tries_the_store_anew_and_computes(crowd):
    reply = await crowd.worker()("health", deep=True)
    assert reply["status"] == "ready"
    assert reply["store"]["capabilities"]["conditional_writes"] is True


@pytest.mark.parametrize("crowd", ["ceph"], indirect=True)
async def test_health_and_doctor_say_that_a_store_has_no_links_to_write(crowd):
    worker = crowd.worker()
    reply = await worker("health")
    assert (reply["status"], reply["store"]["degraded"]) == ("degraded", [NO_LINKS_TO_WRITE])
    assert reply["store"]["capabilities"]["write_links"] is False
    examined = await Examiner(crowd.store, worker.settings).examine()
    assert NO_LINKS_TO_WRITE in "\n".join(map(doctor.told, examined.findings))


async def test_of_an_error_of_cuda_what_happened_is_shown_and_not_its_advice():
    script = (
        "import runpy, torch\n"
        "def broken(*_, **__): raise RuntimeError('CUDA error: out of memory\\nCompile with X.')\n"
        "torch.ones = broken\n"
        "runpy.run_module('child.compute_check', run_name='__main__')"
    )
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == "RuntimeError: CUDA error: out of memory"


async def test_what_cannot_compute_is_broken(crowd, monkeypatch, tmp_path):
    (tmp_path / "child").mkdir()
    (tmp_path / "child" / "compute_check.py").write_text("raise RuntimeError('no kernel image')")
    monkeypatch.setattr(checks, "_ROOT", tmp_path)
    reply = await crowd.worker()("health", deep=True)
    assert reply["status"] == "broken"
    assert "no kernel image" in reply["reasons"][0]["message"]


# ---- before the first job, and for a person


async def test_a_broken_worker_never_takes_a_job(tmp_path):
    broken = settings(tmp_path, data_dir=Path("/proc/never"))
    with pytest.raises(RuntimeError, match="/proc/never"):
        await doctor.check_fitness(broken)


async def test_a_fit_worker_takes_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "FITNESS_PAUSE_SECONDS", 0)
    fit = settings(tmp_path, data_dir=tmp_path / "store")
    assert await doctor.check_fitness(fit) is None
    (tmp_path / "store" / "locks").write_text("in the way of what a look at the store writes")
    with pytest.raises(RuntimeError, match="both an object and a folder"):
        await doctor.check_fitness(fit)


def test_a_finding_is_told_with_what_to_do():
    told = doctor.told(Finding("disk", "broken", "/x is full", "free it"))
    assert "BROKEN" in told
    assert "/x is full" in told
    assert "-> free it" in told


@pytest.mark.parametrize(
    ("argv", "lost"),
    [
        ('["{python}", "{here}/run.py", "--out", "{outputs}"]', None),
        ('["sh", "-c", "true"]', None),
        ('["no-such-program"]', "p: no-such-program"),
        ('["{python}", "{here}/no-such-file.py"]', "no-such-file.py"),
    ],
)
def test_doctor_says_which_declared_program_is_not_there(tmp_path, argv, lost):
    (tmp_path / "run.py").touch()
    (tmp_path / "programs.toml").write_text(f"[programs.p]\nargv = {argv}\n")
    finding = doctor.look_for_programs(read_programs(tmp_path / "programs.toml"))
    assert finding.verdict == ("degraded" if lost else "ok")
    assert (lost or "1 declared") in finding.message


def test_doctor_prints_every_check_and_ends_with_a_verdict(tmp_path):
    environment = os.environ | {
        "WORKER_DATA_DIR": str(tmp_path / "store"),
        "WORKER_SCRATCH_DIR": str(tmp_path / "scratch"),
    }
    command = [sys.executable, ROOT / "rp_handler.py", "doctor"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for word in ("store", "clock", "disk", "gpu", "compute", "can take jobs"):
        assert word in ended.stdout
    environment["WORKER_SCRATCH_DIR"] = "/proc/never"
    command.append("--quick")
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "BROKEN" in ended.stdout
    assert "store" not in ended.stdout


async def test_the_examination_never_raises(tmp_path, crowd):
    worker = crowd.worker()
    worker.store.away = True
    found = await Examiner(worker.store, settings(Path("/proc/never"))).examine()
    assert by_check(found.findings)["disk"].verdict == "broken"
    assert found.verdict == "broken"


@pytest.mark.parametrize(
    ("mount", "is_needed", "verdicts"),
    [
        (Mount.NONE, True, []),
        (Mount.VOLUME, True, ["ok"]),
        (Mount.CACHED_MODELS, True, ["ok"]),
        (Mount.NOT_WRITABLE, True, ["degraded"]),
        (Mount.NOT_WRITABLE, False, ["ok"]),
    ],
)
def test_a_volume_that_records_would_miss_is_told(mount, is_needed, verdicts):
    findings = judge_mount(mount, is_needed=is_needed)
    assert [finding.verdict for finding in findings] == verdicts
    assert all(mount.value in each.message or each.next_step for each in findings)


async def test_kinds_tell_which_api_and_which_version_answer(tmp_path):
    call = Caller(LocalStore(tmp_path / "store"), tmp_path)
    reply = await call("kinds")
    assert (reply["api"], reply["worker_version"]) == (API, WORKER)


def test_the_project_has_the_version_of_the_worker():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert project["project"]["version"] == WORKER
