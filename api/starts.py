"""From a request, and the RunPod job that it came with, to the `Start` that it means. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from api.actions import BulkDownloadAction, StartAction
from api.parsing import InvalidRequest, check_input, parse_params, process_id_of
from attempts.archive import ARCHIVE
from inputs.sources import Input, is_whole
from jobs import COMMAND
from programs.declaration import Programs
from records.delivery import Start
from records.record import Record
from records.replies import Reply
from utils import WorkerError, new_id
from worker.redaction import MASK, MASKED_BY_PYDANTIC, MIN_LENGTH, Redactor, secrets_in
from worker.settings import Settings

#: Each line of a process's log is searched for each of them.
MAX_SECRETS = 500


class CannotRepeat(WorkerError):
    """A process cannot be resumed by its id alone: its record leaves out secrets of its start."""

    code = "cannot_repeat"


class Starts(NamedTuple):
    """Makes starts of requests, by the settings and programs of this worker."""

    settings: Settings
    redactor: Redactor
    programs: Programs

    def of(self, action: StartAction, job: dict[str, Any]) -> Start:
        """The start that a request asks for, checked as far as words alone can be.

        Raises:
            UnknownKind, InvalidRequest, InputRefused: see `parsing`.
        """
        for name, asked in action.inputs.items():
            check_input(name, asked, self.settings)
        valid = parse_params(action.kind, action.params, self.programs)
        masked = self.redactor.fields(valid)
        secrets = _bounded(chain(secrets_in(action.params, masked), _secrets_in_links(action)))
        known = self.redactor.knowing(secrets)
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
            declaration=self.programs.declaration(valid) if action.kind == COMMAND else None,
        )

    def again(self, record: Record, action: StartAction, job: dict[str, Any]) -> Start:
        """The start that `record` came from, for a caller who names the process alone.

        Raises:
            CannotRepeat: the record does not hold a secret that the request held.
            UnknownKind, InvalidRequest, InputRefused: this worker cannot do what was asked then.
        """
        if lost := [*_left_out(record)]:
            raise CannotRepeat(
                f"the record of {record.process_id} leaves out secrets ({', '.join(lost)}): send "
                "the whole start again, with the same kind, params, inputs and process_id"
            )
        if record.kind == ARCHIVE:
            start = _archive(record.process_id, record.params, job)
        else:
            inputs = {name: Input(**each.model_dump()) for name, each in record.inputs.items()}
            asked: dict[str, Any] = {"kind": record.kind, "params": record.params}
            asked |= {"inputs": inputs, "labels": record.labels}
            asked |= {"timeout_seconds": record.timeout_seconds}
            start = self.of(action.model_copy(update=asked), job)
        return start._replace(repeats=record.request_hash)


def _bounded(secrets: Iterable[str]) -> tuple[str, ...]:
    """Those that are long enough to be looked for.

    Raises:
        InvalidRequest: there are more than MAX_SECRETS.
    """
    found: set[str] = set()
    for value in secrets:
        if len(value) >= MIN_LENGTH:
            found.add(value)
        if len(found) > MAX_SECRETS:
            raise InvalidRequest(
                f"the request holds more than {MAX_SECRETS} secret values; the values in the "
                "queries of links are counted, too"
            )
    return tuple(sorted(found))


def _left_out(record: Record) -> Iterator[str]:
    """Names the fields whose secrets the record does not hold."""
    for name, value in record.params.items():
        text = json.dumps(value)
        if MASK in text or MASKED_BY_PYDANTIC in text:
            yield f"`params.{name}`"
    for name, each in record.inputs.items():
        if MASK in each.source or not is_whole(each.source):
            yield f"`inputs.{name}`"


def _secrets_in_links(action: StartAction) -> Iterator[str]:
    """A presigned URL is as good as a key, and what makes it one is in its query."""
    for each in action.inputs.values():
        yield from (value for _, value in parse_qsl(urlsplit(each.source).query))


def job_id_of(job: dict[str, Any]) -> str | None:
    """The RunPod job's id; a job by hand has none."""
    return None if job.get("id") is None else str(job["id"])


def _process_id(named: str | None, job: dict[str, Any]) -> str:
    job_id = job_id_of(job)
    return named or (process_id_of(job_id) if job_id else new_id())


def archive_start(action: BulkDownloadAction, job: dict[str, Any]) -> Start:
    """A process of the kind `archive`. Raises InvalidRequest if the job's id cannot name one."""
    params: Reply = {"process_ids": [*dict.fromkeys(action.process_ids)], "pattern": action.pattern}
    return _archive(_process_id(action.process_id, job), params, job)


def _archive(process_id: str, params: Reply, job: dict[str, Any]) -> Start:
    return Start(
        process_id=process_id,
        kind=ARCHIVE,
        params=params,
        shown_params=params,
        labels={},
        runpod_job_id=job_id_of(job),
    )
