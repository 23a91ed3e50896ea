"""The last word of a job: what its return or its exception means to whoever started it."""

from __future__ import annotations

import errno
import json
from typing import Any

from pydantic import ValidationError

from jobs.context import RESULT_LIMIT, JobFailed

Event = dict[str, Any]


def failed(error: Exception) -> Event:
    """The last word of a job that raised `error`."""
    if isinstance(error, JobFailed):
        code, message, retryable = error.code, str(error), error.retryable
    else:
        code, message, retryable = _code_of(error), f"{type(error).__name__}: {error}", False
    return {"event": "failed", "code": code, "message": message[:2000], "retryable": retryable}


def checked(result: object) -> object:
    """`result`, if it can be part of a reply. Raises JobFailed."""
    try:
        size = len(json.dumps(result, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise JobFailed("result_invalid", f"The result is not JSON: {error}") from None
    if size > RESULT_LIMIT:
        sentence = f"The result takes {size} bytes; at most {RESULT_LIMIT} fit in a reply."
        raise JobFailed("result_too_large", sentence)
    return result


def without_values(error: ValidationError) -> str:
    """What is wrong with params, field by field; never what was given, which may be a secret."""
    problems = error.errors(include_input=False, include_context=False, include_url=False)
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        for problem in problems
    )


def _code_of(error: Exception) -> str:
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return "cuda_out_of_memory"
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "DefaultCPUAllocator: can't allocate memory" in text
    ):
        return "host_out_of_memory"
    return "job_error"
