"""What a running job may touch: its folders and its voice. Nothing else.

A job is a plain function `run(context, params) -> result`. It never sees the store or a
credential: it reads and writes folders, and the worker moves the bytes. To test a job, call it:

    events = []
    result = run(JobContext(tmp_path, emit=events.append), Params(...))
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from child.names import shown

Emit = Callable[[dict[str, Any]], None]

#: A result is returned inline in replies, so it stays small: bytes of its JSON.
RESULT_LIMIT: Final = 256 * 1024
#: What one event may take on its way to the worker, in bytes.
EVENT_LIMIT: Final = RESULT_LIMIT + 16 * 1024


#: What `Job.keep` loaded, in processes that were forked from one that did; see `jobs.template`.
loaded: Any = None


class JobStopped(BaseException):
    """Raised by a job that was told to stop, after it has saved what it wants to keep.

    Also raised *into* a job by SIGTERM. A BaseException, so that a job's own
    `except Exception` cannot swallow it.
    """


class JobFailed(Exception):
    """A failure the job can name: a stable `code` for programs, a sentence for people."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class JobContext:
    """The folders of one attempt, and the ways to report from it."""

    def __init__(
        self,
        folder: Path,
        *,
        emit: Emit = lambda _event: None,
        stop: threading.Event | None = None,
        resume_from: Path | None = None,
        attempt: int = 1,
        device: str = "auto",
        prepared: Path | None = None,
        declaration: JsonValue = None,
    ) -> None:
        self.inputs: Final = folder / "inputs"
        #: Whatever lies here when the job ends becomes an artifact.
        self.outputs: Final = folder / "outputs"
        #: A place to write checkpoints, before `checkpoint` hands them over.
        self.checkpoints: Final = folder / "checkpoints"
        #: What an earlier attempt handed to `checkpoint` last (same name, same content), or None.
        self.resume_from: Final = resume_from
        self.attempt: Final = attempt
        #: What the kind's `prepare` made, to read; None for a kind that has none.
        self.prepared: Final = prepared
        #: What the operator has declared about what is to run; only the kind `command` has it.
        self.declaration: Final = declaration
        self._sealed = folder / "sealed"
        self._folder = folder
        self._emit = emit
        self._stop = stop or threading.Event()
        self._device = device
        self._seals = 0
        for path in (self.inputs, self.outputs, self.checkpoints, self._sealed):
            path.mkdir(parents=True, exist_ok=True)

    def progress(
        self, step: int, total: int | None = None, message: str = "", **metrics: float
    ) -> None:
        """Say how far the job is: `step` of `total` done, with current figures such as `loss=`.

        Cheap enough to call at every step; the worker shows the newest one.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._emit(
            {
                "event": "progress",
                "step": int(step),
                "total": None if total is None else int(total),
                "message": message[:500],
                "metrics": finite,
            }
        )

    def checkpoint(self, path: Path) -> None:
        """Hand over a finished file or folder under `checkpoints` to resume from.

        It is *moved*, so that nothing can change it while it travels; write the next one anew.
        Files travel, empty folders do not.
        """
        self._seals += 1
        sealed = self._sealed / f"{self._seals:06d}"
        sealed.mkdir()
        os.replace(path, sealed / path.name)  # noqa: PTH105 - one atomic move
        self._emit({"event": "checkpoint", "seq": self._seals, "path": self._relative(sealed)})

    def artifact(self, path: Path) -> None:
        """Offer a finished file under `outputs` for download at once, while the job goes on.

        Raises ValueError when it lies elsewhere, FileNotFoundError when it is no regular file.
        """
        relative = path.relative_to(self.outputs).as_posix()
        if path.is_symlink() or not path.is_file():
            raise FileNotFoundError(f"outputs/{relative} is not a regular file")
        self._emit({"event": "artifact", "path": shown(relative)})

    def should_stop(self) -> bool:
        """Whether somebody asked this attempt to end: save a checkpoint, then raise JobStopped."""
        return self._stop.is_set()

    @property
    def kept(self) -> Any:
        """What the kind's `keep` has loaded already, for exactly these inputs; None: nothing."""
        return loaded

    def device(self) -> str:
        """What the operator chose; else `cuda` where there is a usable GPU, `cpu` elsewhere."""
        if self._device != "auto":
            return self._device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()
