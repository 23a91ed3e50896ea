"""The kind `command`: run a program that the operator declares, such as a trainer of one's own.

The worker's own process checks the params against the declaration and sends both to the child
(`programs.declaration`). Here the program is started, without a shell; its lines and files become
progress, artifacts and checkpoints; and how it ends becomes how the job ends.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, JsonValue, ValidationError

from child.confine import confine_writes, confined
from child.context import JobFailed, JobStopped
from child.ending import CUDA_MEMORY_WORDS
from child.environment import child_environment
from child.guardian import adopt_orphans, children
from programs.declaration import Base, Program, place_of
from programs.files import CheckpointFiles, OutputFiles
from programs.params import plain_values
from programs.placeholders import fill_argv, fill_config, fill_text
from programs.progress import PrintedLines, ProgressFile, Reported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from child.context import JobContext
    from programs.placeholders import Value

#: How often one looks whether it has ended, or shall end, and how far it is, in seconds.
LOOK_SECONDS = 0.2
#: How often one looks at its files.
FILES_SECONDS = 1.0
#: What it started has so long to end after it, in seconds.
LEFT_SECONDS = 5.0
#: Read of what it prints at a time, in bytes.
CHUNK = 64 * 1024
#: What programs need to write to beside their own folders. CUDA first of all names a thread, in
#: /proc/self/task/*/comm; where that is refused it finds no GPU (its error 304). A rule for
#: /proc/self would be for this process alone, not for those that it starts.
SYSTEM = (Path("/dev"), Path("/proc"))
#: A longer path of the folder for temporary files leaves no room for the name of a socket in it,
#: which takes 108 bytes at most: torch's data loaders could not speak to each other.
TEMPORARY_PATH_LIMIT = 70

#: How the names of links to such folders begin.
LINK_PREFIX = "runpod-worker-tmp-"

NOT_CONFINED = (
    "This machine's kernel cannot keep a program from writing outside of its folder (that takes "
    "Linux 6.2 or newer, with Landlock). Send the start again for another machine, or have the "
    "operator declare `confine = false` for this program, if it may write wherever the worker can."
)
#: How programs say that writing was refused to them.
WRITE_REFUSED = ("Permission denied", "PermissionError", "EACCES")
HELD_TO_ITS_FOLDER = (
    " Something was forbidden to it; it may write below its own folder only, and where `writable` "
    "of its declaration says."
)


class Params(BaseModel, frozen=True, extra="forbid"):
    """Which program, and its own params; `kinds` shows each program's."""

    program: Annotated[str, Field(max_length=64, description="A program that is declared here.")]
    params: Annotated[
        dict[str, JsonValue], Field(description="What the program's declaration asks for.")
    ] = {}


def run(context: JobContext, params: Params) -> JsonValue:
    """Run the program to its end.

    Raises:
        JobFailed: params_invalid, program_not_started, program_not_confined, program_failed,
            output_missing, output_collision, too_many_files, progress_flood,
            program_left_processes, cuda_out_of_memory, host_out_of_memory.
        JobStopped: it was asked to end; what it saved is handed over.
    """
    program = Program.model_validate(context.declaration)
    try:
        values = plain_values(program.params_model(params.program).model_validate(params.params))
    except ValidationError:  # the worker has checked them
        raise JobFailed("params_invalid", "The params do not fit the declaration.") from None
    running = _Running(context, program, values)
    return {"program": params.program, "files": running.run()}


class _Running:
    """One program while it runs."""

    def __init__(self, context: JobContext, program: Program, values: dict[str, Value]) -> None:
        self._context = context
        self._program = program
        self._root = context.outputs.parent
        self._folders: dict[Base, Path] = {
            "work": self._root / "work",
            "inputs": context.inputs,
            "outputs": context.outputs,
            "checkpoints": context.checkpoints,
        }
        self._temporary = self._root / "tmp"
        for folder in (self._folders["work"], self._root / "home", self._temporary):
            folder.mkdir(exist_ok=True)
        self._outputs = OutputFiles(context, self._folders, program.outputs)
        declared = program.checkpoints
        self._checkpoints = (
            confined([self._root], lambda: CheckpointFiles(context, self._folders, declared))
            if declared
            else None
        )
        self._lines = PrintedLines(program.progress.lines if program.progress else None)
        self._file = self._progress_file()
        self._total = self._known_total(values)
        self._shown: Reported | None = None
        self._values = values | self._built_in()
        self._looked_at_files = time.monotonic()
        self._asked_to_end = False

    def run(self) -> int:
        """The number of its artifacts. Raises JobFailed, JobStopped."""
        if len(str(self._temporary)) <= TEMPORARY_PATH_LIMIT:
            return self._run()
        with _short_link(self._temporary) as self._temporary:
            return self._run()

    def _run(self) -> int:
        self._process = self._start()
        self._reader = threading.Thread(target=self._relay, daemon=True)
        self._reader.start()
        try:
            code = self._follow()
        except JobStopped:  # SIGTERM, which came to the program, too; from here on it is ignored
            self._asked_to_end = True
            code = self._follow()
        self._reader.join(timeout=1)  # longer only if something it left behind holds the pipe
        self._show_progress()
        if self._checkpoints is not None:
            self._hand_over(all_finished=self._asked_to_end and code == 0)
        if self._asked_to_end:
            raise JobStopped
        if code != 0:
            raise self._failure(code)
        _see_nothing_left()
        return confined([self._root], self._outputs.collect)

    # ---- what it is given

    def _built_in(self) -> dict[str, Value]:
        resume = self._checkpoints.resume if self._checkpoints else None
        return {
            **{base: str(path) for base, path in self._folders.items()},
            "config": str(self._root / f"config.{self._program.config_format}"),
            "device": self._context.device() if self._program.uses_device else "",
            "python": sys.executable,
            "here": self._program.here,
            "resume": str(resume) if resume else None,
        }

    def _command(self) -> list[str]:
        resumes = self._values["resume"] is not None
        parts = (*self._program.argv, *(self._program.resume if resumes else ()))
        return fill_argv(parts, self._values)

    def _write_config(self) -> None:
        if self._program.config is None:
            return
        config = fill_config(self._program.config, self._values)
        path = Path(str(self._values["config"]))
        if self._program.config_format == "json":
            text = json.dumps(config, indent=2, allow_nan=False)
        else:
            text = _yaml(config)
        path.touch(mode=0o600)  # it may hold secrets
        path.write_text(text)

    def _environment(self) -> dict[str, str]:
        program = self._program
        missing = [name for name in program.pass_env if name not in os.environ]
        if missing:
            _say(
                f"not passed on, as the worker does not have it or WORKER_CHILD_ENV does not "
                f"name it: {', '.join(missing)}"
            )
        return {
            **child_environment(os.environ, {}),
            "HOME": str(self._root / "home"),
            "TMPDIR": str(self._temporary),
            "PYTHONUNBUFFERED": "1",
            **{name: os.environ[name] for name in program.pass_env if name in os.environ},
            **{name: fill_text(text, self._values) for name, text in program.env.items()},
        }

    def _start(self) -> subprocess.Popen[bytes]:
        self._write_config()
        adopt_orphans()  # so that what it leaves behind can be seen
        before = {
            number: signal.signal(number, signal.SIG_DFL)  # else it would ignore them, too
            for number in (signal.SIGINT, signal.SIGHUP)
        }
        try:
            with ThreadPoolExecutor(1) as thread:  # one that nobody needs after it was confined
                return thread.submit(self._start_confined).result()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "its command line cannot be used"
            sentence = f"The program {self._command()[0]!r} could not be started: {reason}."
            raise JobFailed("program_not_started", sentence) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_confined(self) -> subprocess.Popen[bytes]:
        if self._program.confine:
            own = [self._root, self._temporary, *SYSTEM]
            if not confine_writes([*own, *map(Path, self._program.writable)]):
                raise JobFailed("program_not_confined", NOT_CONFINED, retryable=True)
        else:
            _say("as its declaration says, nothing keeps it from writing outside of its folder")
        return subprocess.Popen(  # noqa: S603 - declared by the operator, no shell
            self._command(),
            cwd=self._folders["work"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    # ---- while it runs

    def _follow(self) -> int:
        """Until it ends: its exit code, -N when ended by signal N."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(LOOK_SECONDS)
            if self._context.should_stop() and not self._asked_to_end:
                self._asked_to_end = True
                self._process.send_signal(self._program.signal())
            self._show_progress()
            now = time.monotonic()
            # Nobody knows how much time is left to one that is to end.
            if self._asked_to_end or now - self._looked_at_files >= FILES_SECONDS:
                self._looked_at_files = now
                confined([self._root], self._outputs.offer_finished)
                if self._checkpoints is not None:
                    self._hand_over(all_finished=False)

    def _hand_over(self, *, all_finished: bool) -> None:
        """Held to the attempt's folder as the program is: it may have laid links on the way."""
        assert self._checkpoints is not None
        confined([self._root], partial(self._checkpoints.hand_over, all_finished=all_finished))

    def _relay(self) -> None:
        """What it prints is the job's log; beside that it is listened to. In a thread."""
        assert self._process.stdout is not None
        while chunk := os.read(self._process.stdout.fileno(), CHUNK):
            written = 0
            while written < len(chunk):
                written += os.write(1, chunk[written:])
            self._lines.feed(chunk)

    def _progress_file(self) -> ProgressFile | None:
        progress = self._program.progress
        if progress is None or progress.file is None:
            return None
        place = place_of(progress.file)
        return ProgressFile(self._folders[place.base] / place.glob, progress.max_bytes)

    def _known_total(self, values: dict[str, Value]) -> int | None:
        name = self._program.progress.total if self._program.progress else None
        value = values.get(name) if name else None
        return value if isinstance(value, int) else None

    def _show_progress(self) -> None:
        seen = self._file.read() if self._file else self._lines.newest
        if seen is not None and seen != self._shown:
            self._shown = seen
            total = seen.total if seen.total is not None else self._total
            self._context.progress(seen.step, total, seen.message, **seen.metrics)

    # ---- how it ended

    def _failure(self, code: int) -> JobFailed:
        if any(words in self._lines.tail for words in CUDA_MEMORY_WORDS):
            return JobFailed("cuda_out_of_memory", "The program ran out of GPU memory.")
        if code == -signal.SIGKILL:
            sentence = "Something killed the program: most likely host memory ran out."
            return JobFailed("host_out_of_memory", sentence)
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        sentence = f"The program ended with {how}."
        if self._program.confine and any(each in self._lines.tail for each in WRITE_REFUSED):
            sentence += HELD_TO_ITS_FOLDER
        return JobFailed("program_failed", sentence)


def _see_nothing_left() -> None:
    """Whoever declares a program's end its success must know that it has ended.

    What is still there is killed when the job ends, by its guardian. Raises JobFailed.
    """
    deadline = time.monotonic() + LEFT_SECONDS
    while left := _living():
        if time.monotonic() > deadline:
            raise JobFailed(
                "program_left_processes",
                f"The program ended with exit code 0, but "
                f"{left} of the processes that it started went on.",
            )
        time.sleep(0.05)


def _living() -> int:
    """How many processes there are below this one; the ended are reaped."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return len(list(children()))


def _yaml(config: object) -> str:
    """`config` as YAML in which every text is quoted: no version of YAML reads it as a number."""
    import yaml

    quoted: Any = type("Quoted", (yaml.SafeDumper,), {})
    quoted.add_representer(
        str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    )
    text: str = yaml.dump(config, Dumper=quoted, sort_keys=False)
    return text


def _say(sentence: str) -> None:
    """Into the job's log."""
    os.write(1, f"[worker] {sentence}\n".encode())


@contextmanager
def _short_link(folder: Path) -> Iterator[Path]:
    """A link to `folder` among the machine's temporary files, where its path is short.

    So what a program leaves there lies in the attempt's folder and goes with it. A killed attempt
    leaves the link alone; the next one removes those that lead nowhere.
    """
    shared = Path(tempfile.gettempdir())
    for link in shared.glob(f"{LINK_PREFIX}*"):
        with suppress(OSError):  # another user's
            if link.is_symlink() and not link.exists():
                link.unlink()
    link = shared / f"{LINK_PREFIX}{secrets.token_hex(6)}"
    link.symlink_to(folder)
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)
