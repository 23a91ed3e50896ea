"""Counts every request to a bucket, whether boto3 or `signed_calls` sends it, with its outcome."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from worker.meter import Meter

#: The requests that carry bytes of an object. Those that fetch bytes are counted as they are read.
WRITES = ("PutObject", "UploadPart")


#: Outcomes beside those of `outcome_of`.
OK, NO_ANSWER = "ok", "no_answer"


class _Sent(threading.local):
    """The request that this thread has sent, until its outcome is known."""

    operation: str | None = None
    size = 0


class RequestCounter:
    """Tells a meter of each request. A thread sends one request at a time."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._sent = _Sent()

    def watch(self, client: S3Client) -> None:
        """Count the requests of `client`, also those that botocore itself repeats.

        A link that is signed is no request.
        """
        events = client.meta.events
        events.register("before-send.s3", self._before_send)
        events.register("response-received.s3", self._received)
        events.register("after-call-error.s3", self._failed)

    def began(self, operation: str, size: int) -> None:
        """A request is about to be sent, with a body of `size` bytes."""
        self._sent.operation, self._sent.size = operation, size

    def ended(self, outcome: str) -> None:
        """The request that this thread began has an outcome. Idempotent."""
        operation, self._sent.operation = self._sent.operation, None
        if operation is None:
            return
        self.meter.asked(operation, outcome)
        if outcome == OK and operation in WRITES:
            self.meter.moved("up", self._sent.size)

    # ---- botocore's events

    def _before_send(self, event_name: str, request: Any, **_: Any) -> None:
        size = int(request.headers.get("Content-Length") or 0)
        self.began(event_name.rpartition(".")[2], size)

    def _received(self, parsed_response: dict[str, Any] | None, **_: Any) -> None:
        if parsed_response is None:
            self.ended(NO_ANSWER)
        else:
            self.ended(outcome_of(parsed_response["ResponseMetadata"]["HTTPStatusCode"]))

    def _failed(self, **_: Any) -> None:
        """The answer broke off while it was read; in other cases `_received` came first."""
        self.ended(NO_ANSWER)


def outcome_of(status: int) -> str:
    """One of a few words: stores have many codes, and new ones."""
    match status:
        case 404:
            return "not_found"
        case 409 | 412:
            return "conflict"
        case 429 | 503:
            return "throttled"
        case status if status >= 500:
            return "server_error"
        case status if status < 300 or status == 304:
            return OK
        case _:
            return "refused"
