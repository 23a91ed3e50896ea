"""A process that has imported what children need, and forks attempts in milliseconds.

    python -m jobs.template SOCKET      (the number of one end of a socket pair; `child.forks` has
                                         the other)

It never computes anything and never touches CUDA, so every attempt still begins with a clean GPU.
Each request brings the three pipes of an attempt and its environment. The new process is forked
twice: the one in between ends at once, and Linux hands the orphan to the worker, whose child it
then is, as if the worker had started it itself.

Asked to, it forks another template, one that first loads what a kind keeps (`jobs.Keep`): attempts
that are forked from that one find it in their memory.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from child import context
from child.forks import fork_name
from child.guardian import die_with_parent
from jobs import JOBS
from jobs import __main__ as child

#: What takes a child most of its start: torch, and what the kinds that ship here compute with.
PRELOADED: Final = (
    "torch",
    "numpy",
    "PIL.Image",
    "safetensors.torch",
    "jobs.diffusion.training",
    "torch._inductor.config",  # `torch.use_deterministic_algorithms` imports it: seconds, 70 MB
)
REQUEST_LIMIT: Final = 1 << 17
#: An orphan comes to the worker at once; longer only if the worker is no longer there.
ADOPTED_SECONDS: Final = 5.0
#: A thread that has been joined is gone from the kernel's list a moment later.
JOINED_SECONDS: Final = 0.5
#: If memory runs out, a template goes first: it is never needed. Unless an attempt alone, which has
#: less (see `child.guardian`), holds half of all memory more than it.
OOM_SCORE: Final = 1000
_OOM_SCORE_FILE: Final = Path("/proc/self/oom_score_adj")


def main() -> None:
    """Import, then serve requests until the worker is gone."""
    worker = os.getppid()
    die_with_parent(worker)
    workers_score = _OOM_SCORE_FILE.read_text()
    _set_oom_score(str(max(OOM_SCORE, int(workers_score))))
    preload()
    _serve(int(sys.argv[1]), worker, workers_score)


def preload() -> None:
    """Import what forks would import themselves."""
    for module in PRELOADED:
        importlib.import_module(module)
    JOBS.read_all()


def _serve(requests_fd: int, worker: int, workers_score: str) -> None:
    """Fork on request. Returns in the template when the worker is gone; a fork becomes another."""
    child.flush_output()  # or what waits there would be in the log of every fork
    with suppress(OSError):  # how the worker knows its forks
        Path("/proc/self/comm").write_text(fork_name(os.getpid()))
    gc.freeze()  # what is there stays there: no collection in a fork copies its pages
    with socket.socket(fileno=requests_fd) as requests:
        requests.send(b'{"ready": true}')
        while True:
            data, pipes, _, _ = socket.recv_fds(requests, REQUEST_LIMIT, 3)
            if not data:
                return
            request = json.loads(data)
            pid = _fork_twice()
            if pid == 0:
                break
            for pipe in pipes:
                os.close(pipe)
            requests.send(json.dumps({"pid": pid}).encode())
    _be_adopted_by(worker)
    os.setsid()
    if "load" in request:
        die_with_parent(worker)
        _load(request.pop("load"), pipes[0])
        _serve(pipes[0], worker, workers_score)
    else:
        _set_oom_score(workers_score)
        _become_attempt(request, pipes)
        child.main()


def _load(wanted: dict[str, Any], requests: int) -> None:
    """Keep what attempts of this kind would load.

    What it raises ends this process, unheard: the attempt will load for itself, and say it in its
    own log, from which secrets are taken out. A loader that leaves threads running is refused.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    job = JOBS[wanted["kind"]]
    assert job.keep is not None
    params = job.params.model_validate(wanted["params"])
    import torch

    # A pool of threads does not survive a fork: its threads are gone, and whoever waits for them
    # waits for ever. On one thread torch makes none.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = _threads()
    context.loaded = job.keep.load(Path(wanted["inputs"]), params)
    torch.set_num_threads(threads)
    if left := _left_running(before):
        os.write(
            requests,
            json.dumps(
                {"refused": f"its loader left {left} threads running, which no fork would have"}
            ).encode(),
        )
        os._exit(1)


def _left_running(before: int) -> int:
    """How many threads there are more than before."""
    deadline = time.monotonic() + JOINED_SECONDS
    while (left := _threads() - before) > 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    return max(left, 0)


def _threads() -> int:
    """Of this process, also those that Python does not know."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names, no paths


def _fork_twice() -> int:
    """0 in the new process; in the template its number, or -1 if the system refused."""
    told, tell = os.pipe()
    try:
        between = os.fork()
    except OSError:
        between = -1
    if between == 0:
        _fork_and_tell(told, tell)
        return 0
    os.close(tell)
    with open(told, "rb") as answer:  # noqa: PTH123 - a pipe, not a path
        pid = int(answer.read() or -1)
    if between > 0:
        os.waitpid(between, 0)
    return pid


def _fork_and_tell(told: int, tell: int) -> None:
    """Returns in the new process only: the one in between ends here, whatever happens."""
    pid = -1
    try:
        os.close(told)
        pid = os.fork()
        if pid:
            os.write(tell, b"%d" % pid)
    finally:
        if pid:
            os._exit(0)
    os.close(tell)


def _set_oom_score(score: str) -> None:
    with suppress(OSError):  # not everywhere it may be changed
        _OOM_SCORE_FILE.write_text(score)


def _be_adopted_by(worker: int) -> None:
    deadline = time.monotonic() + ADOPTED_SECONDS
    while os.getppid() != worker:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.0005)


def _become_attempt(request: dict[str, Any], pipes: list[int]) -> None:
    """Turn into what `python -m jobs CONTROL EVENTS`, started by the worker, would be."""
    control, events, printed = pipes
    nothing = os.open(os.devnull, os.O_RDONLY)
    for pipe, number in ((nothing, 0), (printed, 1), (printed, 2)):
        os.dup2(pipe, number)
    os.close(nothing)
    os.close(printed)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)  # as at the start of any Python program
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["jobs", str(control), str(events)]
    _draw_other_numbers()


def _draw_other_numbers() -> None:
    """`random` seeds itself anew in a fork; NumPy's generator would repeat itself in each."""
    import numpy as np

    np.random.seed()


if __name__ == "__main__":
    main()
