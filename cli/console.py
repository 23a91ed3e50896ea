"""A process as a person at a terminal sees it: a bar while it runs, its files once it has ended."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from api.progress import Look
from jobs.cli.progress import LINE_SECONDS, figures_of, line, move, new_bar
from utils import WorkerError, set_within

#: How often the bar is redrawn.
BAR_SECONDS = 0.2
MAX_FILES = 15
#: What a process is at, where its status does not say it.
_PHASES = {
    "inputs": "fetching inputs",
    "startup": "starting",
    "preparing": "preparing",
    "upload": "uploading",
}


async def show_progress(look: Look, done: asyncio.Event) -> None:
    """Show how a process comes along until `done`."""
    if sys.stderr.isatty():
        await _show_bar(look, done)
    else:
        await _print_lines(look, done)


async def _show_bar(look: Look, done: asyncio.Event) -> None:
    with new_bar("starting") as bar:
        over = False
        while not over:
            over = await set_within(done, BAR_SECONDS)
            with suppress(WorkerError):  # not recorded yet, or the store is away
                _draw(bar, await look())


def _draw(bar: tqdm[Any], view: Mapping[str, Any]) -> None:
    bar.set_description_str(_label(view), refresh=False)
    if progress := view["progress"]:
        move(bar, progress["step"], progress["total"], _figures(progress))
    bar.refresh()


def _label(view: Mapping[str, Any]) -> str:
    """`train_diffusion running`, or what it does instead; from the second on, which attempt."""
    again = f" (attempt {view['attempt']})" if view["attempt"] > 1 else ""
    return f"{view['kind']} {_PHASES.get(view['phase'], view['status'])}{again}"


async def _print_lines(look: Look, done: asyncio.Event) -> None:
    while not await set_within(done, LINE_SECONDS):
        with suppress(WorkerError):
            view: Mapping[str, Any] = await look()
            if progress := view["progress"]:
                eta = progress["eta_seconds"]
                left = f", {eta:.0f} s left" if eta else ""
                figures = _figures(progress)
                told = line(view["kind"], progress["step"], progress["total"], figures)
                _say(f"{told}{left}")


def _figures(progress: Mapping[str, Any]) -> str:
    return figures_of(progress["metrics"], progress["message"])


def print_end(reply: Mapping[str, Any]) -> None:
    """Say how a start ended, and where its files lie. `reply` is the start's own."""
    began = reply["started_at"] or reply["created_at"]
    took = datetime.fromisoformat(reply["updated_at"]) - datetime.fromisoformat(began)
    name, status = reply["process_id"], reply["status"]
    _say(f"\n{reply['kind']} {status} in {took.total_seconds():.0f} s ({name})")
    if failure := reply["failure"]:
        _say(f"  {failure['code']}: {failure['message']}")
        for line in failure["log_tail"][-10:]:
            _say(f"  | {line}")
    links = [file["url"] for file in reply["files"]]
    for link in links[:MAX_FILES]:
        parts = urlsplit(link)
        _say(f"  {unquote(parts.path) if parts.scheme == 'file' else link}")
    if len(links) > MAX_FILES:
        _say(f"  ... and {len(links) - MAX_FILES} more (action `download`)")
    if status == "interrupted":
        _say(f"To resume it:\n  {resume_command(name)}")


def print_reply(reply: Mapping[str, Any]) -> None:
    """Print a reply on standard output as JSON, which is indented at a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.buffer.write(json.dumps(reply, indent=indent, ensure_ascii=False).encode() + b"\n")
    sys.stdout.flush()


def resume_command(process_id: str) -> str:
    """The shell command that resumes a process, for this folder."""
    request = json.dumps({"input": {"action": "start", "process_id": process_id}})
    program = [os.path.relpath(path) for path in (sys.executable, sys.argv[0])]
    return shlex.join([*program, "--test_input", request])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal's module
