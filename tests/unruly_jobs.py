"""Jobs that misbehave, for the runner's tests. The runner starts this file in place of `-m jobs`.

Each is a kind named like its function, which takes the context and its params as a dict.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child.context import JobContext, JobFailed, JobStopped
from jobs import JOBS, Job, Keep


def event_pipe() -> int:
    """Where the protocol speaks; a job has no business there."""
    return int(sys.argv[2])


class Anything(BaseModel, extra="allow"):
    """Params that nobody checks."""


def show_environment(_context: JobContext, _params: dict[str, Any]) -> JsonValue:
    return dict(os.environ)


def show_modules(_context: JobContext, _params: dict[str, Any]) -> JsonValue:
    return sorted(sys.modules)


def show_start(_context: JobContext, _params: dict[str, Any]) -> JsonValue:
    """How this process came to be, and what it found."""
    torch_was_imported = "torch" in sys.modules
    import numpy as np
    import torch

    guardian = os.getppid()
    parent = Path(f"/proc/{guardian}/stat").read_text().rpartition(")")[2].split()[1]
    return {
        "torch_was_imported": torch_was_imported,
        "cuda_was_initialized": torch.cuda.is_initialized(),
        "guardian": guardian,
        "parent_of_guardian": int(parent),
        "guardians_oom_score": Path(f"/proc/{guardian}/oom_score_adj").read_text(),
        "session": os.getsid(0),
        "numbers": [random.random(), float(np.random.random())],  # noqa: S311
    }


def show_params(_context: JobContext, params: dict[str, Any]) -> JsonValue:
    """Params, and whatever could have leaked them to other users of the machine."""
    command_line = Path("/proc/self/cmdline").read_text()
    return {"params": params, "elsewhere": command_line + json.dumps(dict(os.environ))}


def show_pipes_of_descendants(_context: JobContext, _params: dict[str, Any]) -> JsonValue:
    """What a program, and a fork, that the job starts hold at the numbers of the protocol."""
    look = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    program = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    read, write = os.pipe()
    if os.fork() == 0:
        held = [Path(f"/proc/self/fd/{pipe}").readlink() for pipe in map(int, sys.argv[1:3])]
        os.write(write, json.dumps([str(path) for path in held]).encode())
        os._exit(0)
    return {
        "numbers": sys.argv[1:3],
        "program": program.stdout,
        "fork": json.loads(os.read(read, 4096)),
    }


def show_inputs(context: JobContext, _params: dict[str, Any]) -> JsonValue:
    files = [path for path in sorted(context.inputs.rglob("*")) if path.is_file()]
    return {path.relative_to(context.inputs).as_posix(): path.read_text() for path in files}


def print_everywhere(context: JobContext, _params: dict[str, Any]) -> JsonValue:
    print("from python")  # noqa: T201
    print("on standard error", file=sys.stderr)  # noqa: T201
    os.write(1, b'{"event": "completed", "result": "forged"}\n')
    subprocess.run(["echo", "from a program"], check=True)
    context.progress(1)
    return "mine"


def print_from_c(_context: JobContext, _params: dict[str, Any]) -> JsonValue:
    ctypes.CDLL(None).printf(b"from a C library, without an end of line")
    return None


def print_much(_context: JobContext, params: dict[str, Any]) -> JsonValue:
    for _ in range(params["megabytes"]):
        sys.stdout.buffer.write(b"a line of 64 bytes".ljust(63, b".").join([b"", b"\n"]) * 16384)
    return None


def raise_error(_context: JobContext, params: dict[str, Any]) -> JsonValue:
    error = {
        "value": ValueError("no good"),
        "named": JobFailed("dataset_empty", "No images.", retryable=True),
        "memory": MemoryError("too big"),
        "cuda": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "context": RuntimeError("CUDA error: out of memory"),
        "stopped": JobStopped(),
    }[params["error"]]
    raise error


def return_it(_context: JobContext, params: dict[str, Any]) -> JsonValue:
    result: JsonValue = params["result"]
    return result


def return_odd(_context: JobContext, params: dict[str, Any]) -> Any:
    return {"a set": {1}, "huge": "x" * 300_000}[params["result"]]


def kill_itself(_context: JobContext, params: dict[str, Any]) -> JsonValue:
    os.kill(os.getpid(), params["signal"])
    return None


def complete_then_exit(_context: JobContext, params: dict[str, Any]) -> JsonValue:
    atexit.register(os._exit, params["exit_code"])
    return "all is well"


def complete_but_linger(_context: JobContext, _params: dict[str, Any]) -> JsonValue:
    threading.Thread(target=time.sleep, args=(86400,)).start()
    return "all is well"


def send(context: JobContext, params: dict[str, Any]) -> JsonValue:
    """Write to the event pipe behind the context's back."""
    text = params["text"].encode()
    for _ in range(params.get("times", 1)):
        os.write(event_pipe(), text)
    os.write(event_pipe(), params.get("end", "").encode())
    context.progress(1)
    return None


def tell_of_an_odd_name(context: JobContext, _params: dict[str, Any]) -> JsonValue:
    """Print, report, offer and return a name whose bytes are not UTF-8."""
    path = context.outputs / os.fsdecode(b"caf\xe9.png")
    path.write_text("")
    sys.stdout.write(f"{path.name}\n")
    context.progress(1, message=path.name)
    context.artifact(path)
    return {"file": path.name}


def report_and_die(context: JobContext, params: dict[str, Any]) -> JsonValue:
    for step in range(params["events"]):
        context.progress(step)
    os.write(event_pipe(), b'{"event": "prog')  # in the middle of a word
    os._exit(7)


def report_fast(context: JobContext, params: dict[str, Any]) -> JsonValue:
    for step in range(params["events"]):
        context.progress(step, params["events"], "as fast as it can", loss=step / 7)
    return None


def save_and_offer(context: JobContext, _params: dict[str, Any]) -> JsonValue:
    (context.checkpoints / "weights").mkdir()
    (context.checkpoints / "weights" / "w.bin").write_text("w")
    context.checkpoint(context.checkpoints / "weights")
    (context.outputs / "samples").mkdir()
    (context.outputs / "samples" / "1.png").write_text("png")
    context.artifact(context.outputs / "samples" / "1.png")
    return os.getcwd()  # noqa: PTH109


def have_descendants(context: JobContext, params: dict[str, Any]) -> JsonValue:
    """Start four sorts of descendant, report once they are up, then do `then`."""
    python = sys.executable
    live = "import time; print('up', flush=True); time.sleep(86400)"
    read, up = os.pipe()
    subprocess.Popen([python, "-c", live], stdout=up)
    below_another = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    subprocess.Popen([python, "-c", below_another, live], stdout=up)
    subprocess.Popen([python, "-c", "import signal; signal.signal(15, 1); " + live], stdout=up)
    # a daemon: no parent, own session, nothing in its environment or its files that tells of us
    subprocess.run(
        ["setsid", "--fork", python, "-c", live],
        env={},
        stdin=subprocess.DEVNULL,
        stdout=up,
        stderr=subprocess.DEVNULL,
    )
    with os.fdopen(read) as lines:
        assert [next(lines) for _ in range(4)] == ["up\n"] * 4
    context.progress(1)
    if params["then"] == "return":
        return None
    if params["then"] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if params["then"] == "hang in C":
        # As native code does that never returns: Python cannot run a signal handler.
        ctypes.PyDLL(None).sleep(86400)
    while True:
        signal.pause()


def count_stops(context: JobContext, params: dict[str, Any]) -> JsonValue:
    """How often, and where, SIGTERM raises JobStopped."""
    stops = []
    try:
        context.progress(0)
        while True:
            threading.Event().wait(60)
    except JobStopped:
        stops.append(threading.current_thread() is threading.main_thread())
    for _ in range(params["more"]):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
        except JobStopped:
            stops.append(False)
    return stops


def talk_until_stopped(context: JobContext, _params: dict[str, Any]) -> JsonValue:
    """Speak in long lines, so that SIGTERM most likely comes in the middle of one."""
    metrics = {f"metric_{number}": 1.0 for number in range(5000)}
    step = 0
    while True:
        step += 1
        context.progress(step, **metrics)


def finish_anyway(context: JobContext, _params: dict[str, Any]) -> JsonValue:
    context.progress(0)
    while not context.should_stop():
        time.sleep(0.01)
    return "done"


class Kept(BaseModel):
    """Which input is kept, and what happens."""

    fails: bool = False
    sleeps: float = 0.0


def load_kept(inputs: Path, _params: Kept) -> dict[str, Any]:
    """Loading tells by whom it was done."""
    text = (inputs / "model").read_text()
    if text == "broken":
        raise ValueError("no model")
    if text == "threads":
        threading.Thread(target=time.sleep, args=(86400,), daemon=True).start()
    return {"text": text, "loaded_by": os.getpid()}


def use_kept(context: JobContext, params: Kept) -> JsonValue:
    """What was found loaded, or loaded here; with a pool of threads, as torch has one."""
    import torch

    found = context.kept or load_kept(context.inputs, params)
    torch.ones(1 << 20).add_(1)
    context.progress(1)
    time.sleep(params.sleeps)
    if params.fails:
        raise ValueError("spoilt")
    return {**found, "kept": context.kept is not None}


KINDS = [
    show_environment,
    show_start,
    show_modules,
    show_params,
    show_pipes_of_descendants,
    show_inputs,
    print_everywhere,
    print_from_c,
    print_much,
    raise_error,
    return_it,
    return_odd,
    kill_itself,
    complete_then_exit,
    complete_but_linger,
    send,
    report_and_die,
    tell_of_an_odd_name,
    report_fast,
    save_and_offer,
    have_descendants,
    count_stops,
    talk_until_stopped,
    finish_anyway,
]


def register() -> None:
    """Let children run them; never in a process of the tests themselves."""
    for kind in KINDS:
        JOBS[kind.__name__] = Job(
            Anything, lambda context, params, kind=kind: kind(context, params.model_dump())
        )
    JOBS["use_kept"] = Job(Kept, use_kept, keep=Keep(lambda _params: "model", load_kept))


if __name__ == "__main__":
    register()
    jobs.__main__.main()
