"""Run a kind as a plain program on this machine: no worker, no store, no child.

It is called right here, so that a debugger sees it and what it prints is seen. Each attempt has a
folder of its own, as in the worker: what one hands over as a checkpoint, the next resumes from.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError
from tqdm import tqdm

from child.context import Emit, JobContext, JobFailed, JobStopped
from child.ending import checked, failed, without_values
from child.prepare import prepared
from jobs import COMMAND, Job
from jobs.cli.progress import LINE_SECONDS, figures_of, line, move, new_bar
from programs.declaration import ProgramsInvalid, read_programs


class RunPlace(NamedTuple):
    """Where a run finds and leaves things: absolute paths."""

    #: Of the run; its attempts are folders in it.
    folder: Path
    #: Read where it is, not copied.
    inputs: Path | None
    prepare_dir: Path
    #: Go on from what the attempts before have handed over.
    resume: bool
    #: What declares the programs of the kind `command`.
    programs: Path | None = None


def run_kind(kind: str, job: Job, given: object, place: RunPlace) -> int:
    """Run it once, tell at the terminal how it goes and ends; the program's exit code."""
    screen = Screen(kind)
    try:
        params = job.params.model_validate(given)
        declaration = declared(params, place.programs) if kind == COMMAND else None
        folder, resume_from = new_attempt(place)
    except ValidationError as error:
        return _say_failure(screen, JobFailed("params_invalid", explained(error, job.params)))
    except JobFailed as error:
        return _say_failure(screen, error)
    except (FileExistsError, ProgramsInvalid) as error:
        return screen.end(str(error), 1)
    screen.say(f"{kind}: {folder}{' (resumed)' if resume_from else ''}")
    try:
        # A job prints to standard error here: standard output has the result alone.
        with _stop_by_signal(screen) as stop, chdir(folder), redirect_stdout(sys.stderr):
            emit = _keeping_one_checkpoint(folder, screen.hear)
            ready = _prepared(kind, job, place, emit, stop)
            context = JobContext(
                folder,
                emit=emit,
                stop=stop,
                resume_from=resume_from,
                prepared=ready,
                attempt=int(folder.name.removeprefix("attempt-")),
                declaration=declaration,
            )
            result = checked(job.run(context, params))
    except JobStopped:
        hint = "--resume goes on" if last_checkpoint(place.folder) else "nothing was saved"
        return screen.end(f"stopped; {hint}", 1)
    except KeyboardInterrupt:
        return screen.end("ended at once", 1)
    except Exception as error:  # noqa: BLE001 - whatever a job raises has to be reported
        screen.close()
        traceback.print_exception(error)
        return _say_failure(screen, error)
    screen.end(f"completed; its files: {context.outputs}", 0)
    print(json.dumps(result))  # noqa: T201 - the one thing that a program may want to read
    return 0


def _prepared(
    kind: str, job: Job, place: RunPlace, emit: Emit, stop: threading.Event
) -> Path | None:
    if job.prepare is None:
        return None
    return prepared(kind, job.prepare, place.prepare_dir, emit=emit, stop=stop)


def prepare_kind(kind: str, job: Job, root: Path) -> int:
    """Set up what the kind needs once on a machine; the program's exit code."""
    screen = Screen(kind)
    if job.prepare is None:
        return screen.end("needs nothing to be set up", 0)
    try:
        with _stop_by_signal(screen) as stop:
            ready = prepared(kind, job.prepare, root, emit=screen.hear, stop=stop)
    except JobStopped:
        return screen.end("stopped", 1)
    except JobFailed as error:
        screen.close()
        traceback.print_exception(error)
        return _say_failure(screen, error)
    return screen.end(f"is set up: {ready}", 0)


def _say_failure(screen: Screen, error: Exception) -> int:
    event = failed(error)
    return screen.end(f"failed\n  {event['code']}: {event['message']}", 1)


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with params, and which there are. Never what was given: it may be a secret."""
    return f"{without_values(error)}. There is {', '.join(sorted(model.model_fields))}."


def declared(params: Any, file: Path | None) -> JsonValue:
    """What the program that the params of `command` name is told of itself.

    Raises:
        JobFailed: it is not declared (unknown_program), or its params are wrong (params_invalid).
        ProgramsInvalid: the file of declarations cannot be used.
    """
    programs = read_programs(file)
    if params.program not in programs.by_name:
        there = ", ".join(programs.by_name) or "none: name the file of them in WORKER_PROGRAMS"
        raise JobFailed("unknown_program", f"No such program is declared. There is {there}.")
    model = programs.model(params.program)
    try:
        model.model_validate(params.params)
    except ValidationError as error:
        raise JobFailed("params_invalid", explained(error, model)) from None
    return programs.declaration(params.model_dump())


# ---- attempts


def new_attempt(place: RunPlace) -> tuple[Path, Path | None]:
    """A folder for the next attempt, and what it resumes from. Raises FileExistsError."""
    before = _attempts(place.folder)
    if before and not place.resume:
        raise FileExistsError(
            f"{place.folder} holds a run already: --resume goes on with it, --folder names another"
        )
    folder = place.folder / f"attempt-{len(before) + 1}"
    folder.mkdir(parents=True)
    if place.inputs is not None:
        (folder / "inputs").symlink_to(place.inputs, target_is_directory=True)
    return folder, last_checkpoint(place.folder)


def last_checkpoint(folder: Path) -> Path | None:
    """What an attempt of the run in `folder` handed over last."""
    for attempt in reversed(_attempts(folder)):
        for sealed in sorted((attempt / "sealed").glob("*"), reverse=True):
            for path in sealed.iterdir():  # one; none, if the attempt was killed just then
                return path
    return None


def _attempts(folder: Path) -> list[Path]:
    """In their order."""
    return sorted(folder.glob("attempt-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _keeping_one_checkpoint(folder: Path, emit: Emit) -> Emit:
    """Each one replaces those before it: only the last is resumed from."""

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            newest = folder / event["path"]
            for old in newest.parent.iterdir():
                if old.name < newest.name:
                    shutil.rmtree(old)
        emit(event)

    return hear


# ---- the terminal


@contextmanager
def _stop_by_signal(screen: Screen) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask the job to stop. The second Ctrl-C does not ask."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()
        screen.say(
            "stopping; Ctrl-C again ends it at once" if number == signal.SIGINT else "stopping"
        )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Screen:
    """How it goes, on standard error: one bar at a terminal, a line now and then elsewhere."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._turn = threading.RLock()  # a signal may come while the main thread has it
        self._bar: tqdm[Any] | None = None
        self._said_at = float("-inf")

    def hear(self, event: dict[str, Any]) -> None:
        """Show what a job says; it may come from any thread."""
        with self._turn:
            if event["event"] == "phase":
                self.say(f"{self._kind}: {event['phase']}")
            elif event["event"] == "progress":
                self._show(event)

    def _show(self, progress: dict[str, Any]) -> None:
        step, total = progress["step"], progress["total"]
        figures = figures_of(progress["metrics"], progress["message"])
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = new_bar(self._kind)
            move(self._bar, step, total, figures)
            self._bar.update(0)
        elif (now := time.monotonic()) - self._said_at >= LINE_SECONDS:
            self._said_at = now
            self.say(line(self._kind, step, total, figures))

    def say(self, sentence: str) -> None:
        """One line, above the bar if there is one."""
        tqdm.write(sentence, file=sys.stderr)

    def end(self, sentence: str, code: int) -> int:
        """The last line; returns `code`."""
        self.close()
        self.say(f"{self._kind} {sentence}")
        return code

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
