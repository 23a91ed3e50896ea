"""Why a process does not come along, or did not: one reason, with what to do next. Pure.

A failure's own code says exactly what happened; the reason says which of a dozen things that is
to whoever has to act.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from records.record import STOPPED_BY_PLATFORM, TOO_MANY_ATTEMPTS, Record, Status, Trouble
from records.view import Snapshot
from storage import StorageMisconfigured


class Why(NamedTuple):
    """The reason, as a view shows it."""

    code: str
    message: str
    next_step: str


NO_PROGRESS: Final = "no_progress"
#: How stores say that they are asked too much.
_THROTTLING: Final = re.compile("503|429|SlowDown|Throttl|TooManyRequests", re.IGNORECASE)
_RESUME: Final = "send the same start again (or /retry) to resume it from its last checkpoint"
_NEW_HARDWARE: Final = "give the endpoint a larger machine, or ask less of the job"
#: By failure code: the reason, and what to do. What is not here is the job's own.
_FAILURES: Final = {
    "host_out_of_memory": ("host_memory", _NEW_HARDWARE),
    "cuda_out_of_memory": (
        "cuda_memory",
        "use a smaller batch or resolution, or a GPU with more memory",
    ),
    "gpu_memory_short": (
        "cuda_memory",
        f"look at `health`; end what else uses the GPU, then {_RESUME}",
    ),
    "timed_out": ("timeout", f"{_RESUME}, or start anew with a higher timeout_seconds"),
    STOPPED_BY_PLATFORM: (
        "platform_stop",
        f"{_RESUME}; if RunPod's executionTimeout or ttl ended it, send a longer `policy`",
    ),
    TOO_MANY_ATTEMPTS: (
        "too_many_attempts",
        "look at `logs` of its attempts; then start it with a new id",
    ),
    "upload_failed": ("store", f"look at `health` of the store; then {_RESUME}"),
    "checksum_mismatch": ("store", _RESUME),
    "storage_unavailable": ("store", f"look at `health` of the store; then {_RESUME}"),
    "storage_misconfigured": ("store", "mend the settings that `health` names, then start again"),
    "gpu_lost": ("gpu_lost", f"{_RESUME}, on another worker; `health` says what the driver says"),
    "worker_disk": ("worker_disk", f"give the endpoint a larger disk; then {_RESUME}"),
    "input_not_stored": ("worker_disk", f"give the endpoint a larger disk; then {_RESUME}"),
    "child_not_started": ("host_memory", f"{_RESUME}; look at `health`"),
    "stopped_unasked": ("worker_lost", _RESUME),
    "internal_error": ("worker_fault", "please report it with the worker's log"),
    "kind_unknown": ("worker_fault", "deploy one version of the image on all workers"),
    "params_invalid": ("worker_fault", "deploy one version of the image on all workers"),
}


def why(snapshot: Snapshot, *, lease_seconds: float, stall_seconds: float) -> Why | None:
    """The reason why a process is queued, slow, interrupted or failed; None: it goes well."""
    record = snapshot.record
    if record.failure is not None:
        return _failed(record)
    if snapshot.lost(lease_seconds):
        return Why(
            "worker_lost",
            f"worker {record.writer.worker_id} has not written for {snapshot.age_seconds:.0f} s",
            f"wait: RunPod delivers the job of a lost worker again; or {_RESUME}",
        )
    match record.status:
        case Status.INTERRUPTED:
            return Why(
                "worker_stopped",
                "its worker was shut down",
                f"wait: RunPod delivers the job again; or {_RESUME}",
            )
        case Status.QUEUED | Status.RUNNING if record.trouble:
            return _held_up(record.trouble)
        case Status.QUEUED:
            return _unseen(snapshot) or _queued(snapshot)
        case Status.RUNNING:
            return _unseen(snapshot) or _slow(snapshot, stall_seconds)
        case _:
            return None


def _held_up(trouble: Trouble) -> Why:
    message = f"the store does not take what it has to write: {trouble.message}"
    if trouble.code == StorageMisconfigured.code:
        return Why(
            "store_misconfigured", message, "mend what the message names; the job goes on meanwhile"
        )
    what = "store_throttled" if _THROTTLING.search(trouble.message) else "store_away"
    return Why(what, message, "wait: it is repeated, and the job goes on; `health` says more")


def _failed(record: Record) -> Why:
    assert record.failure is not None
    failure = record.failure
    own = ("job_error", "look at the message, `log_tail` and `logs`; mend the job or its params")
    if failure.code.startswith("input_"):
        own = ("input", "look at the message; mend the input, and start it again")
    code, next_step = _FAILURES.get(failure.code, own)
    return Why(code, failure.message, next_step)


def _unseen(snapshot: Snapshot) -> Why | None:
    """Whether its worker lives is what a caller wants to know first."""
    if snapshot.age_seconds is not None:
        return None
    return Why(
        "heartbeat_unknown",
        f"it is unknown when worker {snapshot.record.writer.worker_id} wrote last: the store does "
        "not tell the time, or a clock was set back",
        "ask again: if `revision` grows, the process lives; `health` says more about the clocks",
    )


def _queued(snapshot: Snapshot) -> Why:
    place = snapshot.queue_position
    match snapshot.record.phase:
        case "inputs":
            return Why(
                "waiting_for_input",
                "its inputs are being fetched",
                "wait; `progress` shows how many bytes came",
            )
        case "queued" if place or snapshot.source != "memory":  # only its owner knows the line
            message = f"it waits for a slot of worker {snapshot.record.writer.worker_id}"
            return Why(
                "no_slot",
                f"{message}, number {place} in line" if place else message,
                "wait, allow the endpoint more workers, or start with `on_busy: reject`",
            )
        case _:
            return Why("starting", "its checkpoint is being fetched and its child begun", "wait")


def _slow(snapshot: Snapshot, stall_seconds: float) -> Why | None:
    record = snapshot.record
    if record.phase == "upload":
        return Why(
            "storing_files",
            "the job is done, its files are on their way into the store",
            "wait; `artifacts` shows how many have arrived",
        )
    if record.phase == "preparing":
        return Why(
            "preparing",
            "what its kind needs is being set up on this machine, once",
            "wait; `progress` shows how far it is",
        )
    since = record.progress.at if record.progress and record.progress.at else record.phase_at
    if since is None:
        return None
    still = (record.updated_at - since).total_seconds()  # at least, if the age is unknown
    still += snapshot.age_seconds or 0.0
    if still <= stall_seconds:
        return None
    return Why(
        NO_PROGRESS,
        f"the job has reported no progress for {still:.0f} s",
        "look at `logs`; if it hangs, `cancel` it and start it again",
    )
