"""From a request, and the RunPod job that it came with, to the `Start` that it means. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from api.actions import BulkDownloadAction, StartAction
from api.parsing import check_input, parse_params, process_id_of
from attempts.archive import ARCHIVE
from jobs import COMMAND
from programs.declaration import Programs
from records.delivery import Start
from records.replies import Reply
from utils import new_id
from worker.redaction import Redactor, secrets_in
from worker.settings import Settings

#: The SDK gives this id to every job of `--test_input`.
LOCAL_JOB_ID = "local_test"


def start_of(
    action: StartAction,
    job: dict[str, Any],
    settings: Settings,
    redactor: Redactor,
    programs: Programs,
) -> Start:
    """What a `start` asks for, checked as far as words alone can be.

    Raises:
        UnknownKind, InvalidRequest, InputRefused: see `parsing`.
    """
    for name, asked in action.inputs.items():
        check_input(name, asked, settings)
    valid = parse_params(action.kind, action.params, programs)
    masked = redactor.fields(valid)
    secrets = (*secrets_in(action.params, masked), *_secrets_in_links(action))
    known = redactor.knowing(secrets)
    return Start(
        process_id=_process_id(action.process_id, job),
        kind=action.kind,
        params=action.params,
        shown_params=known.fields(masked),
        inputs=action.inputs,
        labels={name: str(label) for name, label in known.fields(action.labels).items()},
        timeout_seconds=action.timeout_seconds,
        reject_when_busy=action.on_busy == "reject",
        runpod_job_id=job_id_of(job),
        secrets=secrets,
        declaration=programs.declaration(valid) if action.kind == COMMAND else None,
    )


def _secrets_in_links(action: StartAction) -> Iterator[str]:
    """A presigned URL is as good as a key, and what makes it one is in its query."""
    for each in action.inputs.values():
        yield from (value for _, value in parse_qsl(urlsplit(each.source).query))


def job_id_of(job: dict[str, Any]) -> str | None:
    """The RunPod job's id, if it has one of its own."""
    return None if job.get("id") in (None, LOCAL_JOB_ID) else str(job["id"])


def _process_id(named: str | None, job: dict[str, Any]) -> str:
    job_id = job_id_of(job)
    return named or (process_id_of(job_id) if job_id else new_id())


def archive_start(action: BulkDownloadAction, job: dict[str, Any]) -> Start:
    """A process of the kind `archive`. Raises InvalidRequest if the job's id cannot name one."""
    params: Reply = {"process_ids": [*dict.fromkeys(action.process_ids)], "pattern": action.pattern}
    return Start(
        process_id=_process_id(action.process_id, job),
        kind=ARCHIVE,
        params=params,
        shown_params=params,
        labels={},
        runpod_job_id=job_id_of(job),
    )
