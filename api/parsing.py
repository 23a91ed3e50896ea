"""From a job's `input` to an action, with errors that help.

No message ever repeats a value that a caller sent: it may be a secret. Names of fields, actions
and kinds are repeated, shortened, because that is what a person needs to see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, JsonValue, ValidationError

from api.actions import ACTIONS, ID_PATTERN, AnyAction
from inputs.public_web import check_url, parse_allowed_hosts
from inputs.sources import FromKey, FromWeb, Input, check_shared, parse_source
from jobs import COMMAND, JOBS
from programs.declaration import Programs
from utils import WorkerError, did_you_mean
from worker.settings import Settings


class InvalidRequest(WorkerError):
    """The request is not one of those that `kinds` and the README describe."""

    code = "invalid_request"


class UnknownAction(InvalidRequest):
    """There is no such action."""

    code = "unknown_action"


class UnknownKind(InvalidRequest):
    """There is no such kind of job."""

    code = "unknown_kind"


class UnknownProgram(InvalidRequest):
    """The operator has declared no such program."""

    code = "unknown_program"


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
        raise InvalidRequest(explain(error, ACTIONS[name], misplaced=_misplaced(request))) from None


def check_body(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest if fields beside `input` ask for what this worker does not do."""
    if body.get("s3Config"):
        raise InvalidRequest(
            "`s3Config` is not supported: this endpoint stores files in its own bucket, and "
            "`download` gives links to them; leave it out"
        )


def _misplaced(request: dict[str, Any]) -> dict[str, str]:
    """For each field that belongs elsewhere, a sentence that says where."""
    kind = request.get("kind")
    job = JOBS.get(kind) if isinstance(kind, str) else None
    params = job.params.model_fields if job else ()
    return {
        **dict.fromkeys(params, f"is a param of `{kind}`: put it into `params`"),
        **dict.fromkeys(("policy", "webhook"), "stands beside `input`, not in it"),
        "s3Config": "is not supported: this endpoint stores files in its own bucket",
    }


def process_id_of(job_id: str) -> str:
    """The id of a process that is named after its RunPod job.

    Raises:
        InvalidRequest: the job's id has characters that no process id has.
    """
    if not re.fullmatch(ID_PATTERN, job_id):
        raise InvalidRequest("the job's id cannot name a process: give a `process_id`")
    return job_id


def parse_params(
    kind: str, params: dict[str, JsonValue], programs: Programs | None = None
) -> dict[str, JsonValue]:
    """`params` of `kind` with its defaults filled in, and masked where it says so (`SecretStr`).

    Raises:
        UnknownKind: there is no such kind.
        UnknownProgram: the kind is `command`, and there is no such program in `programs`.
        InvalidRequest: a param is missing, unknown or out of its limits.
    """
    if kind in JOBS.broken:
        raise UnknownKind(f"the kind `{kind}` is broken on this worker, whose log says why")
    if kind not in JOBS:
        raise UnknownKind(_unknown("kind", kind, JOBS))
    shown = _shown(JOBS[kind].params, params, "params")
    if kind == COMMAND:
        model = _params_of_program(str(shown["program"]), programs or Programs({}))
        shown["params"] = _shown(model, params.get("params", {}), "params", "params")
    return shown


def _shown(model: type[BaseModel], params: JsonValue, *within: str) -> dict[str, JsonValue]:
    try:
        shown: dict[str, JsonValue] = model.model_validate(params).model_dump(mode="json")
    except ValidationError as error:
        raise InvalidRequest(explain(error, model, within=within)) from None
    return shown


def _params_of_program(name: str, programs: Programs) -> type[BaseModel]:
    if not programs.by_name:
        raise UnknownProgram(
            "this worker has no programs: its operator declares them in the file "
            "that WORKER_PROGRAMS names"
        )
    if name not in programs.by_name:
        raise UnknownProgram(_unknown("program", name, programs.by_name))
    return programs.model(name)


def check_input(name: str, asked: Input, settings: Settings) -> None:
    """Refuse at once what could only fail later. No request is made.

    Raises:
        InvalidRequest: the source is written in no known form.
        InputRefused: its URL may not be asked for, or its key is not for callers.
    """
    try:
        match parse_source(asked.source):
            case FromWeb(url):
                check_url(url, parse_allowed_hosts(settings.allowed_hosts))
            case FromKey(key):
                check_shared(key, settings.input_key_prefixes)
    except WorkerError as error:
        raise type(error)(f"`inputs.{name}`: {error}") from None


def explain(
    error: ValidationError,
    model: type[BaseModel],
    *,
    within: tuple[str, ...] = (),
    misplaced: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A validation error as one sentence a fault: which field and which limit, never the value.

    `misplaced`: of unknown fields, where they belong.
    """
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=True)[:10]:
        where = ".".join(_short(str(part)) for part in within + fault["loc"])
        if fault["type"] == "extra_forbidden" and where in misplaced:
            faults.append(f"`{where}` {misplaced[where]}")
        elif fault["type"] == "extra_forbidden":
            fields = _model_at(model, fault["loc"][:-1]).model_fields
            faults.append(_unknown("field", where, fields, plain=str(fault["loc"][-1])))
        else:
            faults.append(f"`{where}`: {_message(fault)}" if where else _message(fault))
    return "; ".join(faults)


def _model_at(model: type[BaseModel], where: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of what lies at `where` in one of `model`."""
    for part in where:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _message(fault: Any) -> str:
    """What pydantic says, where that cannot hold a value; our own words otherwise."""
    if fault["type"] in ("value_error", "assertion_error"):
        return str(fault["ctx"]["error"])
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == ID_PATTERN:
        return "takes letters, digits, `.`, `_`, `-`, a letter or digit first, 128 at most"
    if fault["type"] == "model_type":
        return "must be an object"
    message = str(fault["msg"])
    return message[0].lower() + message[1:]


def _unknown(what: str, name: str, known: Iterable[str], *, plain: str | None = None) -> str:
    names = sorted(known)
    given = _short(plain or name)
    part_of = [each for each in names if given in each.split("_")]
    hint = did_you_mean(given, part_of or names, cutoff=0 if part_of else 0.5) or "."
    return f"there is no {what} `{_short(name)}`{hint} There is {_listed(names)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _short(name: str) -> str:
    printable = re.sub(r"[^ -~]", "?", name)
    return printable if len(printable) <= 60 else printable[:57] + "..."
