"""The worker's own log: readable lines in a terminal, JSON lines elsewhere, no secrets in either.

Whoever begins a request or an attempt says so with `log_context`; every line that is logged
within, by whatever code, then says which it belongs to.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from worker.redaction import Redactor

#: What a line belongs to, in this order: `request_id`, `process_id`, `attempt`.
_context: ContextVar[dict[str, str | int]] = ContextVar("log_context", default={})  # noqa: B039
#: Of the attempt that a line belongs to: it knows more secrets than the worker.
_redactor: ContextVar[Redactor | None] = ContextVar("log_redactor", default=None)
#: Attributes that every `LogRecord` has; what a caller gives as `extra` are the others.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: They log each URL they fetch, and more than anybody wants to read.
_TALKATIVE = ("httpx", "httpcore", "botocore", "urllib3")


@contextmanager
def log_context(redactor: Redactor | None = None, /, **belongs_to: str | int) -> Iterator[None]:
    """Every line logged within, and in tasks begun within, says what it belongs to.

    `redactor`: knows the secrets that such a line may hold, in place of the worker's own.
    """
    before = _context.set(_context.get() | belongs_to)
    redactor_before = _redactor.set(redactor or _redactor.get())
    try:
        yield
    finally:
        _redactor.reset(redactor_before)
        _context.reset(before)


def log_to_stderr(level: str, *, worker_id: str, redactor: Redactor) -> None:
    """Readable lines in a terminal, JSON lines elsewhere; redacted in both."""
    handler = logging.StreamHandler()
    lines = ReadableLines(redactor) if sys.stderr.isatty() else JsonLines(redactor, worker_id)
    handler.setFormatter(lines)
    logging.basicConfig(level=level, handlers=[handler])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


class ReadableLines(logging.Formatter):
    """For a person: `WARNING records.lease: the store is away  [p1 attempt 2]`."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        context = _context.get()
        process_id, attempt = context.get("process_id"), context.get("attempt")
        suffix = f"  [{process_id} attempt {attempt}]" if attempt else ""
        redactor = _redactor.get() or self._redactor
        return redactor.text(super().format(record)) + suffix


class JsonLines(logging.Formatter):
    """For a machine: one JSON object a line."""

    def __init__(self, redactor: Redactor, worker_id: str) -> None:
        super().__init__()
        self._redactor = redactor
        self._worker_id = worker_id

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "worker_id": self._worker_id,
            **_context.get(),
            **{name: value for name, value in vars(record).items() if name not in _USUAL},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # Through JSON and back: an `extra` may hold anything.
        plain = json.loads(json.dumps(entry, default=repr))
        redactor = _redactor.get() or self._redactor
        return json.dumps(redactor.value(plain))
