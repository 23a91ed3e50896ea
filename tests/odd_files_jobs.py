"""Jobs that lay in their folders what a worker must not read, write to or wait for.

Started in place of `-m jobs`, as `unruly_jobs.py` is.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path

from pydantic import BaseModel, JsonValue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child.context import JobContext
from jobs import JOBS, Job


class Laid(BaseModel, extra="forbid"):
    """What to lay in the attempt's folder, by paths relative to it, in this order."""

    files: dict[str, str] = {}
    #: Are moved aside, so that something else can have their names.
    moved: list[str] = []
    links: dict[str, str] = {}
    hard_links: dict[str, str] = {}
    pipes: list[str] = []
    sockets: list[str] = []
    devices: list[str] = []
    #: Outputs that are offered, whatever they are.
    offers: list[str] = []
    #: Is said to be a checkpoint, whatever it is.
    seals: str = ""
    #: A file or folder below `checkpoints` that is handed over before all that.
    checkpoint: str = ""
    #: Names of outputs in hex, that hold their names and are offered.
    names: list[str] = []
    #: An input whose names are returned in hex.
    named: str = ""
    #: Print so many lines of 64 bytes.
    lines: int = 0
    #: Wait for this file to appear, at the end.
    waits_for: str = ""


def lay(context: JobContext, params: Laid) -> JsonValue:
    """Lay all of it, say what is to be said, wait."""
    root = context.outputs.parent
    for path, text in params.files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    _lay_named(context, params.names)
    if params.checkpoint:
        context.checkpoint(context.checkpoints / params.checkpoint)
    for path in params.moved:
        (root / path).rename(root / f"{path}.moved")
    _lay_links_and_nodes(root, params)
    for path in params.offers:
        _say({"event": "artifact", "path": path})
    if params.seals:
        _say({"event": "checkpoint", "seq": 1, "path": params.seals})
    for number in range(params.lines):
        sys.stdout.write(f"line {number}".ljust(63, ".") + "\n")
    context.progress(1)
    while params.waits_for and not Path(params.waits_for).exists():
        time.sleep(0.01)
    return _names_in(context.inputs / params.named) if params.named else None


def _lay_named(context: JobContext, names: list[str]) -> None:
    for name in map(bytes.fromhex, names):
        path = context.outputs / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
        context.artifact(path)


def _names_in(folder: Path) -> JsonValue:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(os.fsencode(path).hex() for path in found)


def _say(event: dict[str, JsonValue]) -> None:
    """Write to the event pipe behind the context's back."""
    os.write(int(sys.argv[2]), json.dumps(event).encode() + b"\n")


def _lay_links_and_nodes(root: Path, params: Laid) -> None:
    for path, target in params.links.items():
        (root / path).symlink_to(target)
    for path, target in params.hard_links.items():
        (root / path).hardlink_to(target)
    nodes = {
        stat.S_IFIFO: params.pipes,
        stat.S_IFSOCK: params.sockets,
        stat.S_IFCHR: params.devices,
    }
    for kind, paths in nodes.items():
        for path in paths:
            os.mknod(root / path, kind | 0o600, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)


KINDS = {"lay": Job(Laid, lay)}

if __name__ == "__main__":
    JOBS.update(KINDS)
    jobs.__main__.main()
