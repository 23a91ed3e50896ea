"""The record of a process: what it holds, how it may change, what callers see of it.

Everything here is pure: the time is passed in, nothing is read or written. The record in the
store is the truth about a process; `records.lease` is the only code that writes one.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field, JsonValue

from child.events import Progress
from child.verdict import Failure
from utils import Clock
from worker.redaction import Redactor


class Status(StrEnum):
    """Where a process is. The first three change; a terminal one is left only by a new attempt."""

    QUEUED = "queued"  #: recorded and owned by a worker; no child yet
    RUNNING = "running"  #: a child is at work under a live lease
    INTERRUPTED = "interrupted"  #: nobody works on it; a new delivery resumes it
    COMPLETED = "completed"  #: terminal: every artifact and the manifest are stored
    FAILED = "failed"  #: terminal: `failure` says why
    CANCELLED = "cancelled"  #: terminal: stopped because somebody asked


#: Of the records that this version writes. Raise it when an older version would misread, or on
#: writing lose, what a record says: then it leaves such a record alone.
FORMAT = 3
TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
#: A record stays small: a longer list of artifacts is in the manifest only.
MAX_FILES_INLINE = 100
#: Failure codes that the protocol itself acts on.
STOPPED_BY_PLATFORM = "stopped_by_platform"
TOO_MANY_ATTEMPTS = "too_many_attempts"


class RecordPart(BaseModel, frozen=True, extra="ignore"):
    """Part of a record. Unknown fields are ignored: workers of two versions share a store."""


class Writer(RecordPart):
    """Who may write the record: a worker, and a nonce that is new with every claim."""

    worker_id: str
    nonce: str


class HistoryEntry(RecordPart):
    """One status change."""

    status: Status
    at: datetime
    worker_id: str
    attempt: int
    reason: str


class StoredFile(RecordPart):
    """A file in the store. `path` is relative to where its kind of file lives."""

    path: str
    size: int
    sha256: str
    content_type: str = "application/octet-stream"


class ArtifactFile(StoredFile):
    """An artifact. The next attempt keeps those that the record named when it claimed."""

    #: Under whose number it lies.
    attempt: int


class CheckpointFile(StoredFile):
    """A file of a checkpoint. Its time travels: programs choose the newest file by it."""

    #: Last modified, in nanoseconds since the epoch.
    modified_ns: int


class Checkpoint(RecordPart):
    """What the next attempt can resume from; all of its files are in the store."""

    attempt: int
    seq: int
    files: tuple[CheckpointFile, ...]


class ProgressSeen(RecordPart):
    """The newest progress, with what the worker worked out from it."""

    step: int
    total: int | None = None
    percent: float | None = None
    message: str = ""
    metrics: dict[str, float] = {}
    eta_seconds: float | None = None
    #: When `step` last changed.
    at: datetime | None = None

    @classmethod
    def of(
        cls, progress: Progress, *, first_step: int, seconds: float, at: datetime | None = None
    ) -> ProgressSeen:
        """`progress` as seen `seconds` after the attempt's first one, which stood at `first_step`.

        The ETA is the mean pace of this attempt carried on: (total - step) * seconds per step.
        """
        done, total = progress.step - first_step, progress.total
        eta = (total - progress.step) * seconds / done if total and done > 0 else None
        return cls(
            step=progress.step,
            total=total,
            percent=round(100 * progress.step / total, 2) if total else None,
            message=progress.message,
            metrics=progress.metrics,
            eta_seconds=round(max(eta, 0.0), 1) if eta is not None else None,
            at=at,
        )


class Trouble(RecordPart):
    """What keeps a process from going on just now: an error that is met again and again."""

    code: str
    message: str


class RefusedFile(RecordPart):
    """An entry of the output folder that is not stored, and why."""

    path: str
    reason: str


class ArtifactsSummary(RecordPart):
    """How much is stored so far, by all attempts, and what the current one does not store."""

    count: int = 0
    total_bytes: int = 0
    #: Of files under way too, and of those that went up more than once.
    sent_bytes: int = 0
    refused_count: int = 0
    #: The first of them.
    refused: tuple[RefusedFile, ...] = ()


class GivenInput(RecordPart):
    """An input as it was asked for; see `inputs.sources.Input`."""

    #: A URL is without what may be secret in it.
    source: str
    sha256: str | None = None
    unpack: bool = False


class Record(RecordPart):
    """One process as the store holds it. Changing one means making the next one."""

    #: A record of a newer format is refused (`records.reading`) and never changed.
    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    process_id: str
    kind: str
    #: As validated; values of secret fields are masked before they get here.
    params: dict[str, JsonValue]
    #: What the job was given, by name.
    inputs: dict[str, GivenInput] = {}
    #: Of kind, params and inputs as the caller gave them: is this the same request again?
    request_hash: str
    status: Status
    #: +1 with every write, so that no two versions of a record are the same bytes.
    revision: int = 0
    #: Counts claims, from 1. Also the fencing token: what attempt n stores lies under n.
    attempt: int = 1
    writer: Writer
    runpod_job_id: str | None = None
    labels: dict[str, str] = {}
    timeout_seconds: float | None = None
    created_at: datetime
    #: When the current attempt's child began; None while queued.
    started_at: datetime | None = None
    updated_at: datetime
    finished_at: datetime | None = None
    progress: ProgressSeen | None = None
    #: What the attempt is at: `queued inputs startup preparing running upload ended`.
    phase: str = "queued"
    #: Since when it is at that.
    phase_at: datetime | None = None
    #: A store that takes nothing, for example.
    trouble: Trouble | None = None
    cancel_requested: bool = False
    #: A cancel note that was there before this attempt began and does not count against it.
    settled_note: str | None = None
    failure: Failure | None = None
    result: JsonValue = None
    artifacts: ArtifactsSummary = ArtifactsSummary()
    #: All artifacts so far, if they are few: links to them then cost no second read, and each has
    #: its hash while the job still runs. None: the manifest lists them.
    files: tuple[ArtifactFile, ...] | None = ()
    #: Oldest first; at most two.
    checkpoints: tuple[Checkpoint, ...] = ()
    #: Seconds each attempt spent in each of its phases (see `phase`), keyed by attempt.
    timings: dict[int, dict[str, float]] = {}
    history: tuple[HistoryEntry, ...] = ()
    #: A caller had it deleted: there is no such process any more, and this only says so.
    deleted: bool = False

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def released(self) -> bool:
        """Whether nobody holds this record any more."""
        return self.terminal or self.status is Status.INTERRUPTED

    @property
    def resumable(self) -> bool:
        """Whether a new delivery of the same start would begin another attempt from here."""
        if self.status is Status.FAILED:
            return self.failure is None or self.failure.code != TOO_MANY_ATTEMPTS
        if self.status is Status.CANCELLED:
            return self.failure is not None and self.failure.code == STOPPED_BY_PLATFORM
        return self.status is Status.INTERRUPTED

    @property
    def runs(self) -> int:
        """How many attempts got as far as a child and were not called off by a worker's drain."""
        begun = {entry.attempt for entry in self.history if entry.status is Status.RUNNING}
        drained = {entry.attempt for entry in self.history if entry.status is Status.INTERRUPTED}
        return len(begun - drained)

    def encode(self) -> bytes:
        # A job's words may hold half a character (a file name that is no UTF-8, say). Pydantic's
        # own writer refuses those, and a record that cannot be written loses its lease.
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="replace")

    # ---- transitions

    def claimed(
        self,
        writer: Writer,
        now: datetime,
        *,
        reason: str,
        settled_note: str | None = None,
        runpod_job_id: str | None = None,
    ) -> Record:
        """The next attempt begins, by `writer`; what the last one left behind is cleared.

        `settled_note` names the cancel note that was meant for an attempt that has ended since.
        """
        fresh = {
            "started_at": None,
            "finished_at": None,
            "progress": None,
            "failure": None,
            "cancel_requested": False,
            "phase": "queued",
            "trouble": None,
            "settled_note": settled_note or self.settled_note,
            "runpod_job_id": runpod_job_id,
            # The artifacts stay: callers have seen them.
            "artifacts": ArtifactsSummary(
                count=self.artifacts.count, total_bytes=self.artifacts.total_bytes
            ),
        }
        claim = self._with(attempt=self.attempt + 1, writer=writer, **fresh)
        return claim._entered(Status.QUEUED, now, reason)

    def settled_by(self, writer: Writer) -> Record:
        """In the name of somebody who ends it for an owner that is gone.

        A name of its own, or the owner, should it live after all, would take the end for its own.
        """
        return self._with(writer=writer)

    def running(self, now: datetime) -> Record:
        reason = f"resumed from checkpoint {self.checkpoints[-1].seq}" if self.checkpoints else ""
        return self._with(started_at=now)._entered(Status.RUNNING, now, reason or "child started")

    def completed(self, now: datetime, result: JsonValue) -> Record:
        return self._with(result=result)._finished(Status.COMPLETED, now, "child finished")

    def failed(self, now: datetime, failure: Failure) -> Record:
        return self._with(failure=failure)._finished(Status.FAILED, now, failure.code)

    def cancelled(self, now: datetime, *, reason: str) -> Record:
        return self._with(cancel_requested=True)._finished(Status.CANCELLED, now, reason)

    def stopped_by_platform(self, now: datetime) -> Record:
        failure = Failure(
            code=STOPPED_BY_PLATFORM,
            message="RunPod cancelled, expired or timed out the job; send the same start again "
            "(or /retry) to resume it",
            retryable=True,
        )
        return self._with(failure=failure)._finished(Status.CANCELLED, now, STOPPED_BY_PLATFORM)

    def interrupted(self, now: datetime, *, reason: str) -> Record:
        return self._entered(Status.INTERRUPTED, now, reason)

    def with_checkpoint(self, checkpoint: Checkpoint) -> Record:
        return self.with_checkpoints((*self.checkpoints, checkpoint)[-2:])

    def with_checkpoints(self, checkpoints: tuple[Checkpoint, ...]) -> Record:
        return self._with(checkpoints=checkpoints)

    def with_artifacts(self, artifacts: ArtifactsSummary) -> Record:
        return self._with(artifacts=artifacts)

    def with_files(self, files: tuple[ArtifactFile, ...] | None) -> Record:
        """None: there are more than MAX_FILES_INLINE, and the manifest lists them."""
        return self._with(files=files)

    def erased(self, writer: Writer) -> Record:
        """What stays of a deleted process: that there was one, and how far its attempts counted."""
        return Record(
            process_id=self.process_id,
            kind=self.kind,
            params={},
            request_hash="",
            status=Status.CANCELLED,
            revision=self.revision,
            attempt=self.attempt,
            writer=writer,
            created_at=self.created_at,
            updated_at=self.updated_at,
            deleted=True,
        )

    def after(self, erased: Record, settled_note: str | None) -> Record:
        """This first record, in the place of an `erased` one.

        Its attempts go on counting, so that whoever still removes the old files touches no new one.
        """
        attempt = erased.attempt + 1
        history = tuple(entry.model_copy(update={"attempt": attempt}) for entry in self.history)
        return self._with(
            revision=erased.revision, attempt=attempt, settled_note=settled_note, history=history
        )

    def with_cancel_requested(self) -> Record:
        return self._with(cancel_requested=True)

    def with_timing(self, phase: str, seconds: float) -> Record:
        mine = self.timings.get(self.attempt, {})
        mine = {**mine, phase: round(mine.get(phase, 0.0) + seconds, 3)}
        return self._with(timings={**self.timings, self.attempt: mine})

    def with_phase(self, phase: str, at: datetime) -> Record:
        return self._with(phase=phase, phase_at=at)

    def with_trouble(self, trouble: Trouble | None) -> Record:
        return self._with(trouble=trouble)

    def with_progress(self, progress: ProgressSeen | None) -> Record:
        return self._with(progress=progress)

    def along_with(self, newer: Record, trouble: Trouble | None) -> Record:
        """This one, with how its attempt comes along as `newer` has it."""
        return self._with(
            progress=newer.progress,
            artifacts=newer.artifacts,
            phase=newer.phase,
            phase_at=newer.phase_at,
            trouble=trouble,
        )

    def redacted(self, redactor: Redactor, before: Record) -> Record:
        """Without secrets in what was said of the process since `before`."""
        changes: dict[str, Any] = {}
        if self.result is not before.result:
            changes["result"] = redactor.value(self.result)
        if self.failure and self.failure is not before.failure:
            changes["failure"] = self.failure.model_copy(
                update={
                    "message": redactor.text(self.failure.message),
                    "log_tail": tuple(map(redactor.text, self.failure.log_tail)),
                }
            )
        if self.progress and self.progress is not before.progress:
            changes["progress"] = self.progress.model_copy(
                update={
                    "message": redactor.text(self.progress.message),
                    "metrics": {redactor.text(n): v for n, v in self.progress.metrics.items()},
                }
            )
        return self._with(**changes) if changes else self

    def written(self, now: datetime, *, revision: int | None = None) -> Record:
        """As it goes into the store: one revision on."""
        return self._with(revision=revision or self.revision + 1, updated_at=now)

    def _finished(self, status: Status, now: datetime, reason: str) -> Record:
        return self._with(finished_at=now, trouble=None)._entered(status, now, reason)

    def _entered(self, status: Status, now: datetime, reason: str) -> Record:
        if self.terminal and status is not Status.QUEUED:
            raise AssertionError(f"{self.status} was to become {status}")
        entry = HistoryEntry(
            status=status,
            at=now,
            worker_id=self.writer.worker_id,
            attempt=self.attempt,
            reason=reason,
        )
        return self._with(status=status, history=(*self.history, entry))

    def _with(self, **changes: Any) -> Record:
        return self.model_copy(update=changes)


def new_record(
    *,
    process_id: str,
    kind: str,
    params: dict[str, JsonValue],
    request_hash: str,
    writer: Writer,
    now: datetime,
    runpod_job_id: str | None = None,
    labels: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
    inputs: dict[str, GivenInput] | None = None,
) -> Record:
    """The first version of a record: queued, attempt 1, revision 1."""
    record = Record(
        process_id=process_id,
        kind=kind,
        params=params,
        request_hash=request_hash,
        status=Status.QUEUED,
        writer=writer,
        runpod_job_id=runpod_job_id,
        labels=labels or {},
        timeout_seconds=timeout_seconds,
        inputs=inputs or {},
        created_at=now,
        updated_at=now,
    )
    return record._entered(Status.QUEUED, now, "started").written(now)


def clock_of(record: Record, age_seconds: float | None, clock: Clock) -> Clock:
    """This worker's `clock`, set by the one that wrote `record` `age_seconds` ago.

    Workers' clocks disagree. The times of one process are told by one clock, its first worker's,
    or an attempt elsewhere would seem to end before it began. The store's clock ties them together.
    If it did not tell the age, this worker's clock counts, but no time comes before the record's.
    """
    if age_seconds is None:
        ahead = max(record.updated_at - clock(), timedelta(0))
    else:
        ahead = record.updated_at + timedelta(seconds=age_seconds) - clock()
    return lambda: clock() + ahead
