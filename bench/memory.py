"""10. Memory: the worker's own process, idle, at work, after hundreds of processes, writing a zip.

`rp_handler.py` under the SDK's loop, with a template, at a folder. A figure is the resident memory
of that one process. The others share pages, so of them it is the proportional share (PSS): the
template that has imported torch, a child, the SDK's own ping process.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import psutil
from tqdm import tqdm

from bench.figures import Figure, Goal
from bench.in_turn import bar
from tests.big_archive import FILES, completed, put_large_files
from tests.control_plane import ControlPlane, Job
from tests.endpoint import Endpoint
from tests.worker_process import Worker

MB = 1e6
#: Processes that warm a worker up, and those after which it should not have grown.
FEW, MANY, QUICK_FEW, QUICK_MANY = 100, 500, 8, 24
#: Of the zip, in bytes.
ZIP, QUICK_ZIP = 5_000_000_000, 128_000_000
#: At a time, so that the SDK takes them in batches.
SLOTS = 8
#: Readings, four a second, that have to agree.
STILL = 5
#: A busy machine may never be still for so long.
SETTLED_SECONDS = 30.0


def run(quick: bool) -> list[Figure]:
    """All in MB (10^6 bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(Path(folder), quick=quick))


async def _measure(folder: Path, *, quick: bool) -> list[Figure]:
    few, many = (QUICK_FEW, QUICK_MANY) if quick else (FEW, MANY)
    size = QUICK_ZIP if quick else ZIP
    async with _worker(folder) as (endpoint, worker):
        files = await put_large_files(endpoint.store, folder, size // FILES)
        await endpoint.store.create("processes/large/record.json", completed(files).encode())
        found = [
            Figure("idle", await _settled(worker), "MB"),
            *_others(worker),
        ]
        found += await _with_one_running(endpoint, worker)
        with bar(many, "processes") as shown:
            await _run_processes(endpoint, few, shown)
            after_few = await _settled(worker)
            await _run_processes(endpoint, many - few, shown)
            after_many = await _settled(worker)
        found += [
            Figure(f"after {few} processes", after_few, "MB"),
            Figure(f"after {many} processes", after_many, "MB"),
            Figure(
                f"growth from {few} to {many} processes",
                after_many - after_few,
                "MB",
                goal=Goal("<=", 8),
                note="copies of the last 1000 records stay, 11 KB each",
            ),
        ]
        return found + await _writing_a_zip(endpoint, worker, size, before=after_many)


@asynccontextmanager
async def _worker(folder: Path) -> AsyncIterator[tuple[Endpoint, Worker]]:
    """One that has taken its first jobs and whose template is ready. Ends with the block."""
    plane = ControlPlane(execution_timeout=3600)
    await plane.__aenter__()
    endpoint = Endpoint(plane, {"root": str(folder / "store")}, folder)
    worker = endpoint.worker("w1", template=True, slots=SLOTS)
    try:
        worker.start()
        await worker.wait_ready()
        yield endpoint, worker
    except BaseException:
        sys.stderr.write(f"{worker.story()}\n")
        raise
    finally:
        worker.clean_up()
        await endpoint.close()
        with redirect_stderr(StringIO()):  # it would tell of every job
            await plane.__aexit__()


async def _with_one_running(endpoint: Endpoint, worker: Worker) -> list[Figure]:
    before = {each.pid for each in worker.children()}
    job = endpoint.start(seconds=3600, steps=36_000)
    await endpoint.running(job.id, step=1)
    resident = await _settled(worker)
    child = [each for each in worker.children() if each.pid not in before]
    found = [
        Figure("with one process running", resident, "MB"),
        Figure("its child and the child's guardian, PSS", _share(child), "MB"),
    ]
    await endpoint.ask("cancel", process_id=job.id)
    await endpoint.plane.finished(job.id)
    return found


async def _run_processes(endpoint: Endpoint, count: int, shown: tqdm[None]) -> None:
    """Each from its start to its end; the worker always has enough to take."""
    waiting = [endpoint.start(seconds=0) for _ in range(count)]
    for job in waiting:
        await endpoint.plane.finished(job.id, 600)
        assert job.status == "COMPLETED", job.timeline
        shown.update()


async def _writing_a_zip(
    endpoint: Endpoint, worker: Worker, size: int, *, before: float
) -> list[Figure]:
    _forget_peak(worker.pid)
    request = {"action": "bulk_download", "archive": True, "process_ids": ["large"]}
    job: Job = endpoint.plane.submit(request)
    await endpoint.plane.finished(job.id, 600)
    assert job.output["status"] == "completed", job.output
    assert job.output["result"]["bytes"] == size // FILES * FILES
    peak = _status(worker.pid, "VmHWM")
    name = f"writing a zip of {size / 1e9:g} GB"
    return [
        Figure(f"peak, {name}", peak, "MB"),
        Figure(f"more than before, {name}", peak - before, "MB", goal=Goal("<=", 64)),
    ]


async def _settled(worker: Worker) -> float:
    """The worker's resident memory in MB, once it and its template have not changed for a while."""
    seen: list[float] = []
    deadline = time.monotonic() + SETTLED_SECONDS
    while len(seen) < STILL or (
        max(seen[-STILL:]) - min(seen[-STILL:]) > 1 and time.monotonic() < deadline
    ):
        everybody = worker.descendants()
        seen.append(sum(_share([each]) for each in everybody))
        await asyncio.sleep(0.25)
    return _status(worker.pid, "VmRSS")


def _others(worker: Worker) -> list[Figure]:
    """What stands beside an idle worker."""
    ping = [each for each in worker.group() if each.pid != worker.pid]
    return [
        Figure("idle: the SDK's ping process, PSS", _share(ping), "MB"),
        Figure("idle: the template with torch, PSS", _share(worker.children()), "MB"),
    ]


def _share(processes: Iterable[psutil.Process]) -> float:
    """In MB. What they share with others counts in part."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / MB


def _forget_peak(pid: int) -> None:
    """`VmHWM` counts from here on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> float:
    """In MB: `VmRSS` now, `VmHWM` at most so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / MB
    raise KeyError(name)
