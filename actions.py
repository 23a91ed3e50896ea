"""What callers may ask: one model an action, and errors that help.

No message ever repeats a value that a caller sent: it may be a secret. Names of fields, actions
and kinds are repeated, shortened, because that is what a person needs to see.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, JsonValue, StringConstraints, ValidationError

from jobs import JOBS
from processes.record import Status
from utils import Frozen, WorkerError


class InvalidRequest(WorkerError):
    """The request is not one of those that `kinds` and the README describe."""

    code = "invalid_request"


class UnknownAction(InvalidRequest):
    """There is no such action."""

    code = "unknown_action"


class UnknownKind(InvalidRequest):
    """There is no such kind of job."""

    code = "unknown_kind"


_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ProcessId = Annotated[str, StringConstraints(pattern=_ID_PATTERN, strict=True)]
RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=700)]
_Label = Annotated[str, StringConstraints(max_length=256)]
_LabelName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Action(Frozen):
    """One request, after its action was chosen."""


class StartAction(Action):
    """Run a job and hold the request until it ends."""

    action: Literal["start"]
    kind: str = Field(description="What to run; `kinds` lists them.")
    params: dict[str, JsonValue] = Field(default={}, description="The kind's own parameters.")
    process_id: ProcessId | None = Field(
        default=None, description="Your name for it. Default: RunPod's job id."
    )
    labels: dict[_LabelName, _Label] = Field(
        default={}, max_length=32, description="Kept with the process, for you."
    )
    timeout_seconds: float | None = Field(
        default=None, gt=0, le=7 * 86400, description="Ends an attempt that runs longer."
    )
    on_busy: Literal["queue", "reject"] = Field(
        default="queue", description="When no slot is free: wait, or be refused at once."
    )
    detach: bool = Field(default=False, description="Return at once (WORKER_ALLOW_DETACH=1).")


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
    limit: int = Field(default=50, ge=1, le=200)
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
    pattern: RelativePath | None = Field(
        default=None, description="A glob over artifact paths; `*` also crosses `/`."
    )
    expires_in: int = Field(
        default=3600, ge=60, le=7 * 86400, description="Seconds for which the links work."
    )
    cursor: str | None = Field(default=None, max_length=1000)


class HealthAction(Action):
    """How this worker and its store are; a live round trip."""

    action: Literal["health"]


class KindsAction(Action):
    """The kinds, each with the JSON schema of its params."""

    action: Literal["kinds"]


AnyAction = (
    StartAction
    | ProcessStatusAction
    | ProcessesAction
    | CancelAction
    | DownloadAction
    | HealthAction
    | KindsAction
)
ACTIONS: dict[str, type[AnyAction]] = {
    get_args(model.model_fields["action"].annotation)[0]: model for model in get_args(AnyAction)
}


def parse_action(request: object) -> AnyAction:
    """The action that a job's `input` asks for.

    Raises:
        InvalidRequest: it asks for none, for one that does not exist, or in a wrong way.
    """
    if not isinstance(request, dict):
        raise InvalidRequest('`input` must be an object such as {"action": "kinds"}')
    name = request.get("action")
    if not isinstance(name, str):
        raise InvalidRequest(f"`action` must be one of {_listed(ACTIONS)}")
    if name not in ACTIONS:
        raise UnknownAction(_unknown("action", name, ACTIONS))
    try:
        return ACTIONS[name].model_validate(request)
    except ValidationError as error:
        raise InvalidRequest(explain(error, ACTIONS[name])) from None


def process_id_of(job_id: str) -> str:
    """The id of a process that is named after its RunPod job.

    Raises:
        InvalidRequest: the job's id has characters that no process id has.
    """
    if not re.fullmatch(_ID_PATTERN, job_id):
        raise InvalidRequest("the job's id cannot name a process: give a `process_id`")
    return job_id


def parse_params(kind: str, params: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """`params` of `kind` as they may be stored: defaults filled in, secrets masked.

    Raises:
        UnknownKind: there is no such kind.
        InvalidRequest: a param is missing, unknown or out of its limits.
    """
    if kind not in JOBS:
        raise UnknownKind(_unknown("kind", kind, JOBS))
    model = JOBS[kind].params
    try:
        shown: dict[str, JsonValue] = model.model_validate(params).model_dump(mode="json")
    except ValidationError as error:
        raise InvalidRequest(explain(error, model, within="params")) from None
    return shown


def explain(error: ValidationError, model: type[BaseModel], *, within: str | None = None) -> str:
    """A validation error as one sentence a fault: which field and which limit, never the value."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=True)[:10]:
        where = ".".join(_short(str(part)) for part in ((within,) if within else ()) + fault["loc"])
        if fault["type"] == "extra_forbidden":
            faults.append(_unknown("field", where, model.model_fields, plain=str(fault["loc"][-1])))
        else:
            faults.append(f"`{where}`: {_message(fault)}")
    return "; ".join(faults)


def _message(fault: Any) -> str:
    """What pydantic says, where that cannot hold a value; our own words otherwise."""
    if fault["type"] in ("value_error", "assertion_error"):
        return str(fault["ctx"]["error"])
    message = str(fault["msg"])
    return message[0].lower() + message[1:]


def _unknown(what: str, name: str, known: Iterable[str], *, plain: str | None = None) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(plain or name, names, n=1, cutoff=0.5)
    hint = f"; did you mean `{near[0]}`?" if near else "."
    return f"there is no {what} `{_short(name)}`{hint} There is {_listed(names)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _short(name: str) -> str:
    printable = re.sub(r"[^ -~]", "?", name)
    return printable if len(printable) <= 60 else printable[:57] + "..."
