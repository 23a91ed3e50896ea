"""Why an input could not be had. No message holds a URL's query: it may be as good as a key."""

from __future__ import annotations

from utils import WorkerError


class InputError(WorkerError):
    """An input of a process could not be had."""

    code = "input_failed"


class InputRefused(InputError):
    """It is not fetched from there, or not as it is offered; the message says which rule holds."""

    code = "input_refused"


class InputMissing(InputError):
    """The other side is there and says that it has no such thing."""

    code = "input_missing"


class InputTooLarge(InputError):
    """It has more bytes than an input may have, announced or sent."""

    code = "input_too_large"


class InputMismatch(InputError):
    """It is whole, but not what was announced: another SHA-256, another size."""

    code = "input_mismatch"


class InputUnreachable(InputError):
    """The other side did not answer, or not usefully, after every try."""

    code = "input_unreachable"
    retryable = True


class InputNotStored(InputError):
    """This worker's own disk did not take it, as a rule because it is full."""

    code = "input_not_stored"
    retryable = True


class DiskFull(InputNotStored):
    """It is full, or a quota is reached: with less on it the same may work."""
