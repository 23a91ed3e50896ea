"""One section of the bench in a process of its own, so that none finds what another left.

It is forked from one that has imported what all of them use, and done nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rp_handler import SWITCH_SECONDS

#: In these sections, other clients than the worker run threads in the section's own process.
WITH_PEERS = ("transfers",)


def begin(name: str, folder: Path, *, quick: bool) -> int:
    """Fork one that measures `bench.NAME`, writes `NAME.json` to `folder`, and keeps whatever is
    temporary there. Returns its process id, which is its group's, too: an interrupt reaches it
    once, from whom it belongs to, and it cleans up."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        _measure(name, folder / f"{name}.json", quick=quick)
        code = 0
    except KeyboardInterrupt:
        code = 130  # all that it had started has been ended on the way here
    except BaseException:  # noqa: BLE001 - a section that broke is told of, and others go on
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(child: int) -> tuple[int, float]:
    """Wait for it. Returns its exit code, and the seconds that it took from now on."""
    began = time.monotonic()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def _measure(name: str, out: Path, *, quick: bool) -> None:
    if name not in WITH_PEERS:
        sys.setswitchinterval(SWITCH_SECONDS)  # workers in this process are as in their own
    figures = importlib.import_module(f"bench.{name}").run(quick)
    out.write_text(json.dumps([figure._asdict() for figure in figures]))
