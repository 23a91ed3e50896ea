"""What could keep this worker from its work, one finding each, with what to change.

`health`, the fitness checks that RunPod's SDK runs before the first job, and `doctor` all say the
same things: these.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from child.environment import child_environment
from storage import Capabilities, Store, StoreHealth
from utils import WorkerError
from worker import volume
from worker.gpus import Driver, Gpus
from worker.settings import Role
from worker.volume import Mount

Verdict = Literal["ok", "degraded", "broken"]
#: When the clocks are 15 minutes apart, S3 refuses every signature (`RequestTimeTooSkewed`).
CLOCK_LIMIT_SECONDS, CLOCK_WARN_SECONDS = 900.0, 60.0
_NO_TIME = (
    "the store does not tell the time: ages are unknown, nothing expires, and a lost process is "
    "taken over only after it was watched for a lease"
)
_TELL_TIME = "have whatever stands between the worker and the store pass on the `Date` header"
#: A driver that hangs must not take the reply with it.
GPU_SECONDS = 10.0
#: Importing torch and one product of matrices; on a cold disk most of it is the import.
COMPUTE_SECONDS = 180.0
_ROOT = Path(__file__).resolve().parent.parent


class Finding(NamedTuple):
    """The outcome of one check."""

    check: str
    verdict: Verdict
    message: str
    #: What to change; empty when there is nothing.
    next_step: str = ""


class Examined(NamedTuple):
    """Everything that was looked at."""

    findings: tuple[Finding, ...]
    store: StoreHealth
    capabilities: Capabilities | None
    gpus: Gpus
    disk: Disk
    #: Keys of objects that no path leads to.
    foreign: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of them."""
        return worst(self.findings)


class Disk(NamedTuple):
    """The disk that attempts work on, in bytes; None: it cannot be asked."""

    path: str
    total_bytes: int | None
    free_bytes: int | None


def worst(findings: tuple[Finding, ...]) -> Verdict:
    verdicts = {finding.verdict for finding in findings}
    return "broken" if "broken" in verdicts else "degraded" if "degraded" in verdicts else "ok"


# ---- the store


async def ask_store(
    store: Store, *, deep: bool = False
) -> tuple[StoreHealth, Capabilities | None, tuple[Finding, ...]]:
    """A live round trip; `deep`: what the store can do is tried anew, in a second or so."""
    health, capabilities = await store.check(), None
    with suppress(WorkerError):  # it fell away just now: the round trip says so, or the next one
        if health.ok:
            capabilities = await store.capabilities(fresh=deep)
    return health, capabilities, judge_store(health, capabilities)


def judge_store(health: StoreHealth, capabilities: Capabilities | None) -> tuple[Finding, ...]:
    """Pure."""
    if not health.ok or capabilities is None:
        message = health.message if not health.ok else "the store fell away while it was probed"
        step = "mend what the message names: bucket, endpoint, keys or network"
        return (Finding("store", "broken", message, step), *_judge_clock(health))
    took = f" in {health.round_trip_ms:.0f} ms" if health.round_trip_ms is not None else ""
    lacks = tuple(
        Finding("store", "degraded", sentence, "see docs/stores.md; or use another store")
        for sentence in capabilities.degraded
    )
    return (Finding("store", "ok", health.message + took), *lacks, *_judge_clock(health))


def _judge_clock(health: StoreHealth) -> tuple[Finding, ...]:
    offset = health.clock_offset_seconds
    if offset is None:
        return (Finding("clock", "degraded", _NO_TIME, _TELL_TIME),) if health.ok else ()
    message = f"this machine's clock is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}"
    if abs(offset) < CLOCK_WARN_SECONDS:
        return (Finding("clock", "ok", message),)
    verdict: Verdict = "broken" if abs(offset) >= CLOCK_LIMIT_SECONDS else "degraded"
    step = "set the machine's clock (NTP): from 15 minutes on, S3 refuses every signature"
    return (Finding("clock", verdict, message, step),)


# ---- the network volume


def judge_mount(mount: Mount, *, is_needed: bool) -> tuple[Finding, ...]:
    """Pure. `is_needed`: a volume would be the store, as neither a bucket nor a folder is set."""
    if mount is Mount.NONE:
        return ()
    if mount is Mount.NOT_WRITABLE and is_needed:
        message = (
            f"{volume.PATH} is mounted and this worker cannot write to it: records and files lie "
            "on the container's disk and are lost with it"
        )
        return (Finding("volume", "degraded", message, "mount it writable, or set S3_BUCKET"),)
    return (Finding("volume", "ok", f"{volume.PATH}: {mount}"),)


# ---- the disk


def see_disk(folder: Path) -> Disk:
    """How full the disk under `folder` is. Blocking."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(folder)
    except OSError:
        return Disk(str(folder), None, None)
    return Disk(str(folder), usage.total, usage.free)


def try_disk(folder: Path, min_free_bytes: int) -> Finding:
    """Write a file there and read it back. Blocking."""
    path, data = folder / f".check-{secrets.token_hex(8)}", secrets.token_bytes(4096)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        same = path.read_bytes() == data
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            "disk",
            "broken",
            _disk_trouble(folder, error),
            "free it, enlarge it, or set WORKER_SCRATCH_DIR to another",
        )
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    if not same:
        return Finding(
            "disk", "broken", f"{folder} gives back other bytes than it got", "replace the machine"
        )
    if free < min_free_bytes:
        return Finding(
            "disk",
            "degraded",
            f"{folder} has only {free >> 20} MiB free",
            "enlarge the container's disk, or set WORKER_SCRATCH_DIR",
        )
    return Finding("disk", "ok", f"{folder} has {free >> 20} MiB free")


def _disk_trouble(folder: Path, error: OSError) -> str:
    what = {errno.ENOSPC: "is full", errno.EDQUOT: "is over its quota", errno.EROFS: "is read-only"}
    return f"{folder} {what.get(error.errno or 0, f'refuses writes: {error.strerror}')}"


# ---- the GPUs


class GpuWatch:
    """Knows how many GPUs there should be, and therefore when one is gone."""

    def __init__(self, *, role: Role) -> None:
        self._role = role
        self._driver = Driver()
        #: RunPod says how many it gave; afterwards, what was seen before should still be there.
        self._expected = _count(os.environ.get("RUNPOD_GPU_COUNT"))

    async def look(self) -> tuple[Gpus, tuple[Finding, ...]]:
        """Ask the driver, and judge what it says. A `control` worker misses no GPU."""
        gpus = await self._driver.look(GPU_SECONDS)
        findings = () if self._role == "control" else judge_gpus(gpus, self._expected, self._role)
        self._expected = max(self._expected, len(gpus.devices))
        return gpus, findings


def judge_gpus(gpus: Gpus, expected: int, role: Role = "all") -> tuple[Finding, ...]:
    """Pure. `expected`: how many there should be; 0: none need be."""
    step = "let RunPod replace this worker; a GPU that fell off the bus comes back with a reboot"
    if gpus.error:
        return (Finding("gpu", "broken", gpus.error, step),)
    if len(gpus.devices) < expected:
        message = f"{len(gpus.devices)} of {expected} GPUs answer"
        return (Finding("gpu", "broken", message, step),)
    if not gpus.devices and role == "gpu":
        step = "give the endpoint GPUs, or this worker the role `all`"
        return (Finding("gpu", "degraded", "a worker of the role `gpu` without any", step),)
    if not gpus.devices:
        return (Finding("gpu", "ok", "no GPU: jobs run on the CPU"),)
    return tuple(
        Finding(
            "gpu",
            "ok",
            f"{gpu.name}: {gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB "
            f"free; driver {gpus.driver}, CUDA {gpus.cuda}",
        )
        for gpu in gpus.devices
    )


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


async def try_compute() -> Finding:
    """Have a program of its own compute on every device, see `child.compute_check`."""
    step = "look at the driver's and torch's CUDA versions; let RunPod replace this worker"
    try:
        code, said = await _run_compute_check()
        if code == 0:
            return Finding("compute", "ok", str(json.loads(said)["message"]))
    except TimeoutError:
        return Finding("compute", "broken", f"no result within {COMPUTE_SECONDS:g} s", step)
    except (OSError, ValueError, LookupError) as error:
        return Finding("compute", "broken", f"it could not be tried: {error!r}"[:500], step)
    return Finding("compute", "broken", f"torch cannot compute here: {said[:500]}", step)


async def _run_compute_check() -> tuple[int, str]:
    """Its exit code, and the last line that it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "child.compute_check",
        cwd=_ROOT,
        env=child_environment(os.environ, {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMPUTE_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()  # who waits for it may wait for a driver that hangs
    said = (err if process.returncode else out).decode(errors="replace").strip()
    return process.returncode or 0, (said.splitlines() or ["it said nothing"])[-1]
