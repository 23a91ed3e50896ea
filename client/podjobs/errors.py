"""The exceptions of the package: one class for each code that a caller may want to catch.

A worker refuses a request with `{"code", "message", "retryable"}`; a process that failed has the
same in its `failure`. `error_of` turns both into an exception. Codes without a class of their own
arrive as `WorkerError` (a request) or `ProcessFailed` (a process), with the code in `code`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from podjobs.models import View


class PodjobsError(Exception):
    """Base of all errors. `next_step` says what to do."""

    code = "error"
    next_step = ""
    retryable = False

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if next_step is not None:
            self.next_step = next_step


class NotConfigured(PodjobsError):
    """No endpoint or no API key is known."""

    code = "not_configured"


class EndpointUnreachable(PodjobsError):
    """The endpoint's address does not answer, after several tries."""

    code = "endpoint_unreachable"
    next_step = "check the network and the endpoint's id, then run the same command again"
    retryable = True


class KeyRefused(PodjobsError):
    """RunPod does not accept the API key."""

    code = "key_refused"
    next_step = "run `podjobs login` with a key that may use this endpoint"


class EndpointUnknown(PodjobsError):
    """RunPod knows no endpoint of this id."""

    code = "endpoint_unknown"
    next_step = "check the endpoint's id in RunPod's console"


class Unanswered(PodjobsError):
    """No worker answered a request in time."""

    code = "unanswered"
    next_step = (
        "look at the endpoint's workers in RunPod's console: none may be free, or none may start"
    )
    retryable = True


class PlatformRefused(PodjobsError):
    """RunPod refused or ended a request before a worker answered it."""

    code = "platform_refused"
    next_step = "read the message; RunPod's console shows the job"


class TransferFailed(PodjobsError):
    """A file could not be sent or fetched, after several tries."""

    code = "transfer_failed"
    next_step = "run the same command again: it goes on where it stopped"
    retryable = True


class FileChanged(PodjobsError):
    """A file changed while it was sent or fetched."""

    code = "file_changed"
    next_step = "run the same command again when the file is no longer written to"
    retryable = True


class InvalidPath(PodjobsError):
    """A local path cannot be used."""

    code = "invalid_path"


class DiskRefused(PodjobsError):
    """This machine's disk refused a file."""

    code = "disk_refused"
    next_step = "free some space or choose another folder, then run the same command again"


class WorkerError(PodjobsError):
    """The worker refused a request; `code` is the worker's."""

    #: By the worker's code.
    classes: ClassVar[dict[str, type[WorkerError]]] = {}

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        WorkerError.classes[cls.code] = cls


class InvalidRequest(WorkerError):
    """A field is missing, unknown or out of its limits."""

    code = "invalid_request"
    next_step = "correct the request; `podjobs kinds KIND` lists a kind's params"


class UnknownKind(WorkerError):
    """The endpoint's image has no such kind."""

    code = "unknown_kind"
    next_step = "`podjobs kinds` lists the kinds of this endpoint"


class UnknownProcess(WorkerError):
    """There is no such process."""

    code = "unknown_process"
    next_step = "`podjobs ps` lists the processes of this endpoint"


class UnknownArtifact(WorkerError):
    """The process has no such file, or not yet."""

    code = "unknown_artifact"
    next_step = "`podjobs get ID --list` lists its files"


class UnknownFolder(WorkerError):
    """There is no such input folder."""

    code = "unknown_folder"
    next_step = "upload it with `podjobs put`"


class ProcessExists(WorkerError):
    """The id belongs to a start with another kind, other params or other inputs."""

    code = "process_exists"
    next_step = "choose another id, or delete the old process with `podjobs rm`"


class ProcessActive(WorkerError):
    """A process that has not ended cannot be deleted."""

    code = "process_active"
    next_step = "cancel it first: `podjobs cancel ID`"


class CannotRepeat(WorkerError):
    """The record leaves out secrets of the start, so that the id alone cannot resume it."""

    code = "cannot_repeat"
    next_step = "send the whole start again with the same id"


class WorkerBusy(WorkerError):
    """No slot is free, and the start asked not to wait."""

    code = "worker_busy"
    next_step = "try again later, or leave out `on_busy`"


class WorkerDraining(WorkerError):
    """The worker is shutting down."""

    code = "worker_draining"
    next_step = "try again: another worker takes the request"


class UploadRefused(WorkerError):
    """A limit of the upload is exceeded, or a file is there already."""

    code = "upload_refused"


class UploadMismatch(WorkerError):
    """A file arrived with another size or sha256 than announced."""

    code = "upload_mismatch"
    next_step = "run the same command again: the file is sent anew"


class UploadIncomplete(WorkerError):
    """Some of the announced files have not arrived."""

    code = "upload_incomplete"
    next_step = "run the same command again: missing files are sent"


class PresignUnsupported(WorkerError):
    """The endpoint's store has no links."""

    code = "presign_unsupported"


class StorageUnavailable(WorkerError):
    """The endpoint's store does not answer."""

    code = "storage_unavailable"
    next_step = "try again; `podjobs health` shows the store"


class StorageMisconfigured(WorkerError):
    """The endpoint's store refuses its settings."""

    code = "storage_misconfigured"
    next_step = "the endpoint's operator has to correct its settings; `podjobs health` names them"


class ProcessEnded(PodjobsError):
    """Base of the ends of a process that are not `completed`. `view` is its last view."""

    def __init__(self, view: View) -> None:
        failure, why = view.failure, view.why
        message = f"{view.process_id} {view.status}"
        if failure is not None:
            message += f": {failure.message}"
            self.code, self.retryable = failure.code, failure.retryable
        super().__init__(message, next_step=why.next_step if why else None)
        self.view = view


class ProcessFailed(ProcessEnded):
    """The process failed; `code` is that of its failure."""

    code = "failed"


class ProcessCancelled(ProcessEnded):
    """The process was cancelled."""

    code = "cancelled"


class ProcessInterrupted(ProcessEnded):
    """No worker has the process any more, and it was not to be resumed."""

    code = "interrupted"
    next_step = "`podjobs resume ID` continues it from its last checkpoint"


def error_of(text: str) -> PodjobsError:
    """The exception for a reply's `error`: the worker's JSON, or a sentence of the platform."""
    try:
        said = json.loads(text)
        code, message = str(said["code"]), str(said["message"])
        retryable = bool(said.get("retryable", False))
    except (ValueError, TypeError, KeyError):
        return PlatformRefused(text.strip() or "the platform refused the request")
    kind = WorkerError.classes.get(code, WorkerError)
    return kind(message, code=code, retryable=retryable)
