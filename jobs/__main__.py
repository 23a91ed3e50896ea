"""The child's side: one attempt, from the first order on the control pipe to the final event.

    python -m jobs CONTROL EVENTS      (numbers of two pipes; the worker's runner starts it so)

With words instead of numbers it is for people, see `jobs.cli.authoring`: `python -m jobs --help`.

Each way carries one JSON object a line. Orders: first the attempt itself, later
`{"order": "stop"}`. Events: `phase`, `progress`, `checkpoint`, `artifact`, and at last one of
`completed`, `failed`, `stopped`. Standard output and error belong to the job; they are its log.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from child.context import EVENT_LIMIT, JobContext, JobFailed, JobStopped
from child.ending import Message, checked, failed, without_values
from child.guardian import guard
from child.names import json_text
from child.prepare import prepared
from jobs import JOBS

#: What waits to be printed gets so long at the end.
FLUSH_SECONDS = 5.0


class EventWriter:
    """The event pipe: whole lines only, from any thread, whatever SIGTERM interrupts."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._turn = threading.Lock()
        self._main_thread_writes = False
        self._told_to_stop = False

    def emit(self, event: Message) -> None:
        """Send one event. Raises ValueError or TypeError for what JSON cannot say."""
        line = json_text(event).encode() + b"\n"
        if len(line) > EVENT_LIMIT:
            raise ValueError(f"an event of {len(line)} bytes; the limit is {EVENT_LIMIT}")
        if threading.current_thread() is not threading.main_thread():
            self._write(line)
            return
        self._main_thread_writes = True
        self._write(line)
        self._main_thread_writes = False
        if self._told_to_stop:
            self._told_to_stop = False
            raise JobStopped

    def on_sigterm(self, *_: object) -> None:
        """Raise JobStopped in the main thread: once, and never in the middle of a line."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._main_thread_writes:
            self._told_to_stop = True
        else:
            raise JobStopped

    def _write(self, line: bytes) -> None:
        with self._turn:
            while line:
                line = line[os.write(self._pipe, line) :]


def main() -> None:
    """Become the job of one attempt; its guardian stays behind in `guard`."""
    control, events = (int(argument) for argument in sys.argv[1:3])
    guard(control, events)
    writer = EventWriter(events)
    signal.signal(signal.SIGTERM, writer.on_sigterm)
    for pipe in (control, events):
        os.set_inheritable(pipe, False)  # to programs that the job starts
    os.register_at_fork(after_in_child=lambda: _cut_off(writer, control, events))
    faulthandler.enable()
    _open_log()
    final = _final_event(_lines(control), writer)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is decided
    writer.emit(final)
    _leave(1 if final["event"] == "failed" else 0)


def _open_log() -> None:
    """Print line by line, so that the log is up to date, and any name, UTF-8 or not.

    A new stream: the template's may have been opened on a file, and a change of `errors` would ask
    the pipe that took its place for its position.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    stdout = io.FileIO(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(stdout), "utf-8", errors="backslashreplace", line_buffering=True
    )


def _leave(code: int) -> NoReturn:
    """End as a program does: threads awaited, exit functions run, output flushed.

    But not by taking the interpreter down: with torch that takes up to a second, for nothing. These
    are the steps of `multiprocessing`'s own children, and of `sys.exit` before it.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # C's streams have locks, and a thread that a library left may hold one for ever
    flushing = threading.Thread(target=flush_output, daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS)
    os._exit(code)


def flush_output() -> None:
    """Print what waits to be printed, by Python and by C libraries."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or the job closed it
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _final_event(orders: Iterator[bytes], writer: EventWriter) -> Message:
    """Run the attempt that is ordered, and say how it ended."""
    try:
        return {"event": "completed", "result": checked(_run(orders, writer))}
    except JobStopped:
        return {"event": "stopped"}
    except Exception as error:  # noqa: BLE001 - whatever a job raises has to be reported
        if not isinstance(error, JobFailed) or error.__cause__ is not None:
            traceback.print_exception(error)  # of a failure that the job names, its words say all
        return failed(error)


def _run(orders: Iterator[bytes], writer: EventWriter) -> object:
    order = json.loads(next(orders))
    stop = threading.Event()
    threading.Thread(target=_obey, args=(orders, stop), daemon=True).start()
    job = JOBS.get(order["kind"])
    if job is None:
        raise JobFailed("kind_unknown", f"There is no kind {order['kind']!r}.")
    try:
        params = job.params.model_validate(order["params"])
    except ValidationError as error:
        raise JobFailed("params_invalid", without_values(error)) from None
    os.chdir(order["folder"])  # what a job writes without saying where lands here
    ready = None
    if job.prepare is not None:
        root = Path(order["prepare_dir"])
        ready = prepared(order["kind"], job.prepare, root, emit=writer.emit, stop=stop)
    context = JobContext(
        Path(order["folder"]),
        emit=writer.emit,
        stop=stop,
        resume_from=Path(order["resume_from"]) if order["resume_from"] else None,
        attempt=order["attempt"],
        device=order["device"],
        prepared=ready,
        declaration=order["declaration"],
    )
    if order["unpack"]:
        from child.unpack import unpack_inputs  # most jobs have no use for it

        unpack_inputs(context, order["unpack"], order["max_unpacked_bytes"])
    return job.run(context, params)


def _obey(orders: Iterator[bytes], stop: threading.Event) -> None:
    for line in orders:
        if json.loads(line)["order"] == "stop":
            stop.set()


def _lines(pipe: int) -> Iterator[bytes]:
    # Not a buffered file object: a thread that waits in one breaks the interpreter's exit.
    pending = bytearray()
    while chunk := os.read(pipe, 1 << 16):
        pending += chunk
        while (end := pending.find(b"\n")) >= 0:
            yield bytes(pending[:end])
            del pending[: end + 1]


def _cut_off(writer: EventWriter, *pipes: int) -> None:
    """Keep a fork of the job, such as a data loader, from holding or garbling the protocol."""
    if signal.getsignal(signal.SIGTERM) == writer.on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for pipe in pipes:  # replaced, not closed: the number must not come to mean something else
        os.dup2(nowhere, pipe, inheritable=False)
    os.close(nowhere)


if __name__ == "__main__":
    if all(argument.isdigit() for argument in sys.argv[1:]) and len(sys.argv) == 3:
        main()
    else:
        from jobs.cli.authoring import command  # a child has no use for it

        sys.exit(command(sys.argv[1:]))
