"""Start a command, adopt whatever it leaves behind, and kill all of it once stdin is closed.

    python reaper.py LOG COMMAND...

Stands between the tests and a worker process. A worker that dies leaves its children to the next
subreaper above it: here they stay findable, are reaped, and cannot outlive the test, not even when
the test run itself is killed. Prints the command's pid, then `exit STATUS`; ends when all have.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def direct_children() -> list[int]:
    """The pids whose parent this process is; the 4th field of stat, after the name in brackets."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found.append(int(stat.parent.name))
    return found


def kill_when_stdin_closes() -> None:
    """Killing the direct children is enough: orphans become direct children in their turn."""
    sys.stdin.read()
    while True:
        for pid in direct_children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def say(text: str) -> None:
    """Tell the test, if it is still there."""
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def main(log: str, *command: str) -> None:
    """Start the command in a session of its own and reap until nobody is left."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ctrl-C is for whoever started this: without a reaper the worker, in its own session, lives on.
    signal.signal(signal.SIGINT, lambda *_: None)  # ignored, it would be by the command, too
    with Path(log).open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    say(str(child.pid))
    threading.Thread(target=kill_when_stdin_closes, daemon=True).start()
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == child.pid:
                say(f"exit {os.waitstatus_to_exitcode(status)}")
    os._exit(0)  # the command is reaped: no destructor of Popen has anything left to do


if __name__ == "__main__":
    main(*sys.argv[1:])
