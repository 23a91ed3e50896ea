"""A program that does on request what a program should not, and shows what it was given.

odd_program.py DEED [ARGUMENT ...]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OUT = Path(os.environ.get("OUT", "."))


def show(*arguments: str) -> None:
    """What it was given, as its output."""
    config = Path(os.environ.get("CONFIG", "none"))
    shown = {
        "argv": arguments,
        "env": dict(os.environ),
        "cwd": str(Path.cwd()),
        "config": config.read_text() if config.exists() else None,
        "stdin": sys.stdin.read(),
    }
    (OUT / "shown.json").write_text(json.dumps(shown))


def do_nothing() -> None:
    """Exit with 0."""


def say(*words: str) -> None:
    """Print it, and exit with 0."""
    print(*words)


def fail(code: str, *sentence: str) -> None:
    """Say something, and exit with this code."""
    print(*sentence, file=sys.stderr)
    sys.exit(int(code))


def die() -> None:
    """As the kernel kills who takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def write(*paths: str) -> None:
    """Files with something in them, wherever they lie."""
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def litter() -> None:
    """A large temporary file, and no end."""
    Path(os.environ["TMPDIR"], "large").write_bytes(bytes(1 << 20))
    (OUT / "littered").touch()
    time.sleep(3600)


def link(target: str, path: str) -> None:
    """A link to somebody else's file, where the output is expected."""
    (OUT / path).symlink_to(target)


def mislead(laid: str, target: str, made: str) -> None:
    """A link where the worker would write, and the file that it would write there."""
    Path(laid).parent.mkdir(parents=True, exist_ok=True)
    Path(laid).symlink_to(target)
    write(made)


def flood() -> None:
    """Fill the progress file for ever."""
    with Path("progress.jsonl").open("a") as file:
        step = 0
        while True:
            step += 1
            file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")


def flood_lines() -> None:
    """Print 50 MB as fast as it goes, without an end of line for most of it."""
    for step in range(50):
        print("x" * (1 << 20), end="")
        print(f"\nstep {step}/50", flush=True)
    write(str(OUT / "done"))


def report() -> None:
    """Three lines of progress, of which one is nonsense and one is not finished."""
    with Path("progress.jsonl").open("w") as file:
        file.write('{"step": 1, "total": 4, "message": "warming up", "loss": 0.5, "at": "now"}\n')
        file.write("nonsense\n")
        file.write('{"step": 2, "total": 4, "message": "training", "loss": 0.25, "bad": NaN}\n')
        file.write('{"step": 3')
    write(str(OUT / "done"))


def leave_daemon(pid_file: str) -> None:
    """Fork a daemon of a session of its own, and end well."""
    live = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(86400)"
    subprocess.run(["setsid", "--fork", sys.executable, "-c", live, pid_file], check=True)
    while not Path(pid_file).exists() or not Path(pid_file).read_text():
        time.sleep(0.01)
    write(str(OUT / "done"))


def be_stubborn(pid_file: str) -> None:
    """Leave a daemon, ignore every polite signal, and go on for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave_daemon(pid_file)
    print("step 1/2", flush=True)
    while True:
        time.sleep(86400)


def save_when_told(*save: str) -> None:
    """Count; on SIGINT write a checkpoint, and perhaps end."""

    def on_signal(*_: object) -> None:
        write("ckpt/last.txt")
        if save != ("and stay",):
            sys.exit(0)

    signal.signal(signal.SIGINT, on_signal)
    print("step 1/2", flush=True)
    while True:
        time.sleep(86400)


def write_slowly(path: str) -> None:
    """A checkpoint that grows as long as the program runs: never finished."""
    print("step 1/2", flush=True)
    with Path(path).open("w") as file:
        while True:
            file.write("more")
            file.flush()
            time.sleep(0.02)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
