"""Every request to a bucket, counted by the events of its client, with what came of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from worker.meter import Meter

#: The requests that carry bytes of an object. Those that fetch some are counted as they are read.
WRITES = ("PutObject", "UploadPart")


class _Sent(threading.local):
    """The request that this thread has sent, until it is known what came of it."""

    operation: str | None = None
    body_bytes = 0


def count_requests(client: S3Client, meter: Meter) -> None:
    """Tell `meter` of each request of `client`, also those that botocore itself repeats.

    A link that is signed is no request.
    """
    sent = _Sent()

    def close(outcome: str) -> None:
        if sent.operation is None:
            return
        meter.asked(sent.operation, outcome)
        if outcome == "ok" and sent.operation in WRITES:
            meter.moved("up", sent.body_bytes)
        sent.operation = None

    def before_send(event_name: str, request: Any, **_: Any) -> None:
        sent.operation = event_name.rpartition(".")[2]
        sent.body_bytes = int(request.headers.get("Content-Length") or 0)

    def answered(parsed_response: dict[str, Any] | None, **_: Any) -> None:
        close(_outcome(parsed_response))

    def broken(**_: Any) -> None:
        close("no_answer")  # it broke while the answer was read, else that event came first

    events = client.meta.events
    events.register("before-send.s3", before_send)
    events.register("response-received.s3", answered)
    events.register("after-call-error.s3", broken)


def _outcome(answer: dict[str, Any] | None) -> str:
    """One of a few words: stores have many codes, and new ones."""
    if answer is None:
        return "no_answer"
    match answer["ResponseMetadata"]["HTTPStatusCode"]:
        case 404:
            return "not_found"
        case 409 | 412:
            return "conflict"
        case 429 | 503:
            return "throttled"
        case status if status >= 500:
            return "server_error"
        case status if status < 300 or status == 304:
            return "ok"
        case _:
            return "refused"
