"""The last word of a job: what its return or its exception means to whoever started it."""

from __future__ import annotations

import errno
import re
import sys
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from child.context import RESULT_LIMIT, JobFailed
from child.names import json_text
from child.plain import plain

Message = dict[str, Any]

#: What a code of a failure looks like: it is a word for programs.
CODE: Final = r"[a-z][a-z0-9_]{0,63}"
DISK_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: How libraries that hide the errno say it.
DISK_WORDS: Final = ("No space left on device", "Read-only file system", "Disk quota exceeded")
#: How torch says that a GPU's memory ran out: as it allocates, and as it loads a context or kernel.
CUDA_MEMORY_WORDS: Final = ("CUDA out of memory", "CUDA error: out of memory")
#: How torch and the driver say that there is no GPU any more, or that it is broken. (An illegal
#: access or a failed assertion on it is the job's own.)
GPU_WORDS: Final = (
    "No CUDA GPUs are available",
    "no CUDA-capable device",
    "CUDA driver initialization failed",
    "uncorrectable ECC",
    "unspecified launch failure",
    "GPU is lost",
    "device is lost",
    "CUDA unknown error",
    "hardware stack error",
    "NVLink",
)
#: Another machine may do better.
MACHINES_FAULTS: Final = ("worker_disk", "gpu_lost")


def failed(error: Exception) -> Message:
    """The last word of a job that raised `error`."""
    if isinstance(error, JobFailed):
        code = error.code if re.fullmatch(CODE, error.code) else "job_error"
        message, retryable = str(error), error.retryable
    else:
        code, message = _code_of(error), f"{type(error).__name__}: {error}"
        retryable = code in MACHINES_FAULTS
    return {"event": "failed", "code": code, "message": message[:2000], "retryable": retryable}


def checked(result: object) -> object:
    """`result` as plain JSON, if it can be part of a reply. Raises JobFailed.

    A warning about a number that became null goes to the job's log, as all that a job prints.
    """
    try:
        result = plain(result, partial(print, "warning:", file=sys.stderr))
        size = len(json_text(result).encode())
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
    out_of_memory = any(words in text for words in CUDA_MEMORY_WORDS)
    if out_of_memory or type(error).__name__ == "OutOfMemoryError":
        return "cuda_out_of_memory"
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "DefaultCPUAllocator: can't allocate memory" in text
    ):
        return "host_out_of_memory"
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        return "worker_disk"
    if any(words in text for words in DISK_WORDS):
        return "worker_disk"
    if any(words in text for words in GPU_WORDS):
        return "gpu_lost"
    return "job_error"
