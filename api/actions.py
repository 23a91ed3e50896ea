"""What callers may ask: one model an action."""

from __future__ import annotations

import base64
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

from child.names import MAX_PATH_BYTES, relative
from inputs.folder_files import CHUNK_BYTES
from inputs.sources import NAME, Input
from records.record import Status
from utils import Frozen, Sha256

ID_PATTERN = rf"^{NAME}$"
ProcessId = Annotated[str, StringConstraints(pattern=ID_PATTERN, strict=True)]
Folder = Annotated[str, StringConstraints(pattern=ID_PATTERN, strict=True)]
#: Files of one `upload`: a folder of so many is brought, and completed, as a whole.
MAX_FILES = 10_000
#: What a field may hold, objects and lists alike.
MAX_ENTRIES = {"inputs": 64, "labels": 32, "process_ids": 50, "files": MAX_FILES}
#: Lines of one reply of `logs`.
MAX_LOG_LINES = 10_000


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=4 * MAX_PATH_BYTES)]
#: Four characters stand for a byte that is not UTF-8.
RelativePath = Annotated[Pattern, AfterValidator(relative)]
ExpiresIn = Annotated[
    int, Field(ge=60, le=7 * 86400, description="Seconds for which the links work.")
]
_Label = Annotated[str, StringConstraints(max_length=256)]
_LabelName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


#: Attempt and line.
LogCursor = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,5}:\d{1,12}$")]
InputName = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


def _as_input(value: Any) -> Any:
    """A source alone may be written as a string."""
    return {"source": value} if isinstance(value, str) else value


def _check_no_collision(paths: list[str]) -> None:
    """No name twice, and none that is a file here and a folder there.

    With a `/` after each, whatever lies in a folder comes right after it in order.
    """
    for path, after in pairwise(sorted(f"{path}/" for path in paths)):
        if path == after:
            raise ValueError("two files have the same `path`")
        if after.startswith(path):
            raise ValueError("a `path` is a file and also the folder of another one")


class Action(Frozen):
    """One request, after its action was chosen."""


class StartAction(Action):
    """Run a job and hold the request until it ends."""

    action: Literal["start"]
    kind: str = Field(
        default="",
        description="What to run; `kinds` lists them. Without it, `process_id` alone resumes that "
        "process: same kind, params, inputs and labels.",
    )
    params: dict[str, JsonValue] = Field(default={}, description="The kind's own parameters.")
    process_id: ProcessId | None = Field(
        default=None, description="Your name for it. Default: RunPod's job id."
    )
    inputs: dict[InputName, Annotated[Input, BeforeValidator(_as_input)]] = Field(
        default={},
        max_length=MAX_ENTRIES["inputs"],
        description="What the job finds under `inputs`, by name.",
    )
    labels: dict[_LabelName, _Label] = Field(
        default={}, max_length=MAX_ENTRIES["labels"], description="Kept with the process, for you."
    )
    timeout_seconds: float | None = Field(
        default=None, gt=0, le=7 * 86400, description="Ends an attempt that runs longer."
    )
    on_busy: Literal["queue", "reject"] = Field(
        default="queue", description="When no slot is free: wait, or be refused at once."
    )
    detach: bool = Field(default=False, description="Return at once (WORKER_ALLOW_DETACH=1).")

    @model_validator(mode="after")
    def _names_a_kind_or_a_process(self) -> Self:
        request = {"kind", "params", "inputs", "labels", "timeout_seconds"} & self.model_fields_set
        if not self.kind and (request or self.process_id is None):
            raise ValueError(
                "`kind` is missing: `kinds` lists them; or give `process_id` alone to resume a "
                "process with its own kind, params, inputs and labels"
            )
        return self


class ProcessStatusAction(Action):
    """How a process stands; with both waits a long poll."""

    action: Literal["process_status"]
    process_id: ProcessId
    wait_seconds: float = Field(
        default=0, ge=0, le=300, description="Wait this long for a newer revision."
    )
    since_revision: int = Field(
        default=0, ge=0, description="The revision you know; wait for a newer one."
    )


class ProcessesAction(Action):
    """A page of processes, newest first."""

    action: Literal["processes"]
    limit: int = Field(default=50, ge=1, le=1000)
    cursor: str | None = Field(default=None, max_length=400)
    status: Status | None = None
    kind: str | None = Field(default=None, max_length=64)


class CancelAction(Action):
    """Stop a process, wherever it runs."""

    action: Literal["cancel"]
    process_id: ProcessId
    wait_seconds: float = Field(
        default=60, ge=0, le=300, description="Wait this long for the process to be gone."
    )


class DownloadAction(Action):
    """Links to a process's artifacts, also while it runs."""

    action: Literal["download"]
    process_id: ProcessId
    path: RelativePath | None = Field(default=None, description="One artifact.")
    pattern: Pattern | None = Field(
        default=None, description="A glob over artifact paths; `*` also crosses `/`."
    )
    attempt: int | None = Field(
        default=None,
        ge=1,
        description="Only what this attempt stored, also where a later one replaced it.",
    )
    expires_in: ExpiresIn = 3600
    cursor: str | None = Field(default=None, max_length=4400)

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.path is not None and self.pattern is not None:
            raise ValueError("give `path` or `pattern`, not both")
        return self


class BulkDownloadAction(Action):
    """Links to the artifacts of many processes, or one zip of them all."""

    action: Literal["bulk_download"]
    process_ids: list[ProcessId] = Field(min_length=1, max_length=MAX_ENTRIES["process_ids"])
    pattern: Pattern | None = Field(
        default=None, description="A glob over artifact paths; `*` also crosses `/`."
    )
    expires_in: ExpiresIn = 3600
    cursor: str | None = Field(default=None, max_length=4400)
    archive: bool = Field(
        default=False, description="Write one zip into the store; this is a process, see README."
    )
    process_id: ProcessId | None = Field(
        default=None, description="Your name for the archive's process. Default: RunPod's job id."
    )

    @model_validator(mode="after")
    def _only_an_archive_is_a_process(self) -> Self:
        if self.process_id is not None and not self.archive:
            raise ValueError("`process_id` names the process that writes an `archive`")
        if self.cursor is not None and self.archive:
            raise ValueError("an `archive` has no pages: leave out `cursor`")
        return self


class DownloadFileAction(Action):
    """A stretch of one artifact, as base64."""

    action: Literal["download_file"]
    process_id: ProcessId
    path: RelativePath
    offset: int = Field(default=0, ge=0)
    length: int = Field(default=CHUNK_BYTES, ge=1, le=CHUNK_BYTES)


class UploadFile(Frozen):
    """A file to bring into an input folder, or one that was brought."""

    path: RelativePath
    size: int = Field(ge=0)
    sha256: Sha256 | None = None
    content_type: Annotated[str, StringConstraints(pattern=r"^[ -~]{1,128}$")] | None = None
    upload_id: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = Field(
        default=None, description="As the links to its parts came with; for `complete`."
    )


def _from_base64(text: Any) -> bytes:
    """Strictly: what is left out silently would be missed in the file."""
    if isinstance(text, str):
        with suppress(ValueError):
            return base64.b64decode(text, validate=True)
    raise ValueError("this is not base64 (RFC 4648, section 4, with padding)")


class UploadChunk(Frozen):
    """A stretch of a file, for stores that have no links."""

    path: RelativePath
    offset: int = Field(ge=0)
    data: Annotated[
        bytes, BeforeValidator(_from_base64), Field(max_length=CHUNK_BYTES, description="base64")
    ]
    sha256: Sha256 | None = Field(default=None, description="Of the chunk's bytes.")


class UploadAction(Action):
    """Bring files into an input folder: ask for links, PUT, then say that it is complete."""

    action: Literal["upload"]
    folder: Folder
    #: The first wrong file alone is told: an error for each of thousands takes too long.
    files: Annotated[list[UploadFile], FailFast()] = Field(default=[], max_length=MAX_FILES)
    chunk: UploadChunk | None = None
    complete: bool = Field(
        default=False, description="All is there: check `files`, and make the folder ready."
    )
    overwrite: bool = Field(
        default=False, description="Replace what is there already; to be said in `complete`, too."
    )
    expires_in: ExpiresIn = 3600
    cursor: int = Field(default=0, ge=0, le=MAX_FILES)

    @model_validator(mode="after")
    def _one_thing_at_a_time(self) -> Self:
        if (self.chunk is not None) + bool(self.files or self.complete) != 1:
            raise ValueError("give `files`, or `complete: true`, or one `chunk`")
        _check_no_collision([file.path for file in self.files])
        return self


class ListFilesAction(Action):
    """The input folders; what is in one; or what a process made. Without links."""

    action: Literal["list_files"]
    folder: Folder | None = None
    process_id: ProcessId | None = None
    cursor: str | None = Field(default=None, max_length=4400)
    limit: int = Field(default=1000, ge=1, le=1000)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.folder is not None and self.process_id is not None:
            raise ValueError("give `folder` or `process_id`, not both")
        return self


class DeleteAction(Action):
    """Remove a process that has ended, an input folder, or one file of it. For good."""

    action: Literal["delete"]
    process_id: ProcessId | None = None
    folder: Folder | None = None
    path: RelativePath | None = Field(default=None, description="One file of the folder.")
    confirm: str = Field(description="The same id again (of a file: its path).")

    @model_validator(mode="after")
    def _confirmed(self) -> Self:
        if (self.process_id is None) == (self.folder is None):
            raise ValueError("give `process_id` or `folder`, not both")
        if self.path is not None and self.folder is None:
            raise ValueError("`path` names a file of a `folder`")
        if self.confirm != (self.path or self.folder or self.process_id):
            raise ValueError("`confirm` must repeat what is to be deleted")
        return self


class LogsAction(Action):
    """Lines that an attempt printed: the newest, or those after a cursor; also a long poll."""

    action: Literal["logs"]
    process_id: ProcessId
    attempt: int | None = Field(
        default=None,
        ge=1,
        description="Which one's log. Default: the current one's; with a "
        "cursor, that one's and then the next one's.",
    )
    cursor: Annotated[int, Field(ge=0)] | LogCursor | None = Field(
        default=None, description="`next_cursor`, or a line's number: what comes after it."
    )
    tail: int = Field(
        default=100, ge=1, le=MAX_LOG_LINES, description="Without a cursor: how many lines."
    )
    wait_seconds: float = Field(
        default=0, ge=0, le=300, description="Wait this long for a line to come."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.cursor is not None and "tail" in self.model_fields_set:
            raise ValueError("give `cursor` or `tail`, not both")
        if self.attempt not in (None, self.place[0]):
            raise ValueError("`cursor` belongs to another `attempt`")
        return self

    @property
    def place(self) -> tuple[int | None, int | None]:
        """Which attempt, if that is said, and after which line; None: its newest lines."""
        if isinstance(self.cursor, str):
            attempt, _, line = self.cursor.partition(":")
            return int(attempt), int(line)
        return self.attempt, self.cursor


class HealthAction(Action):
    """How this worker and its store are; a live round trip."""

    action: Literal["health"]
    deep: bool = Field(
        default=False,
        description="Also try anew what the store can do, and compute on every GPU: seconds.",
    )


class MetricsAction(Action):
    """What this worker, and all live ones together, have done."""

    action: Literal["metrics"]
    scope: Literal["all", "worker"] = Field(
        default="all", description="All live workers, or only the one that answers."
    )
    format: Literal["json", "prometheus"] = "json"


class KindsAction(Action):
    """The kinds, each with the JSON schema of its params."""

    action: Literal["kinds"]


AnyAction = (
    StartAction
    | ProcessStatusAction
    | ProcessesAction
    | CancelAction
    | DownloadAction
    | BulkDownloadAction
    | DownloadFileAction
    | UploadAction
    | ListFilesAction
    | DeleteAction
    | LogsAction
    | HealthAction
    | MetricsAction
    | KindsAction
)
ACTIONS: dict[str, type[AnyAction]] = {
    get_args(model.model_fields["action"].annotation)[0]: model for model in get_args(AnyAction)
}
