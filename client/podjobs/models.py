"""The worker's replies as typed objects. Fields that a newer worker adds are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

Status: TypeAlias = Literal[
    "queued", "running", "completed", "failed", "cancelled", "interrupted", "not_found"
]
TERMINAL = frozenset({"completed", "failed", "cancelled"})


class Model(BaseModel):
    """Part of a reply."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(Model):
    """How far a process is. In the phase `inputs` steps are bytes."""

    step: int
    total: int | None = None
    percent: float | None = None
    message: str = ""
    metrics: dict[str, float | None] = {}
    eta_seconds: float | None = None


class Failure(Model):
    """Why a process failed."""

    code: str
    message: str
    retryable: bool = False
    exit_code: int | None = None
    signal: str | None = None
    log_tail: tuple[str, ...] = ()


class Why(Model):
    """Why a process is queued, slow, interrupted or failed, and what to do next."""

    code: str
    message: str
    next_step: str = ""


class Refused(Model):
    """An output that the worker did not store, with the reason."""

    path: str
    reason: str


class Artifacts(Model):
    """How many files a process has stored so far."""

    count: int = 0
    total_bytes: int = 0
    refused_count: int = 0
    refused: tuple[Refused, ...] = ()


class HistoryEntry(Model):
    """One change of status."""

    status: str
    at: datetime
    worker_id: str = ""
    attempt: int = 1
    reason: str = ""


class View(Model):
    """A process, as the worker describes it."""

    process_id: str
    status: Status
    kind: str = ""
    revision: int = 0
    attempt: int = 1
    phase: str = ""
    worker_id: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    queue_position: int | None = None
    cancel_requested: bool = False
    failure: Failure | None = None
    result: JsonValue = None
    artifacts: Artifacts = Artifacts()
    heartbeat_age_seconds: float | None = None
    source: str = ""
    stale: bool = False
    resumable: bool = False
    why: Why | None = None
    labels: dict[str, str] = {}
    history: tuple[HistoryEntry, ...] = ()
    #: Presigned URLs by which the process can be followed without a worker.
    links: dict[str, str] = Field(default={}, repr=False)

    @property
    def ended(self) -> bool:
        """Whether the process has reached a terminal status."""
        return self.status in TERMINAL

    @property
    def stopped_by_platform(self) -> bool:
        """Whether RunPod, and no caller, ended it: cancelled there, expired or timed out."""
        failure = self.failure
        return self.status == "cancelled" and (
            failure is not None and failure.code == "stopped_by_platform"
        )


class RemoteFile(Model):
    """A file that a process made. `sha256` is None until its attempt has a manifest."""

    path: str
    size: int
    sha256: str | None = None
    content_type: str | None = None
    #: A link to fetch it; None where the store has none that another machine can use.
    url: str | None = Field(default=None, repr=False)

    @field_validator("url")
    @classmethod
    def _only_web(cls, url: str | None) -> str | None:
        return url if url and url.startswith(("http://", "https://")) else None


class Row(Model):
    """A line of the list of processes."""

    process_id: str
    kind: str
    status: Status
    created_at: datetime


class UploadRow(Model):
    """How a file is to be sent."""

    path: str
    via: Literal["put", "parts", "chunks", "exists", "differs"]
    url: str = Field(default="", repr=False)
    urls: tuple[str, ...] = Field(default=(), repr=False)
    headers: dict[str, str] = {}
    upload_id: str | None = None
    part_bytes: int = 0
