"""A process as a person at a terminal sees it: one bar while it runs, its files when it ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from processes.record import ProgressSeen, Snapshot, Status
from utils import WorkerError, set_within

#: How often the bar is redrawn, and how often a line is printed where there is no terminal.
BAR_SECONDS, LINE_SECONDS = 0.2, 15.0
MAX_FILES = 15

Look = Callable[[], Awaitable[Snapshot]]


async def show_progress(look: Look, done: asyncio.Event) -> None:
    """Show how a process comes along until `done`."""
    if sys.stderr.isatty():
        await _show_bar(look, done)
    else:
        await _print_lines(look, done)


async def _show_bar(look: Look, done: asyncio.Event) -> None:
    layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    with tqdm(desc="starting", total=1, bar_format=layout, dynamic_ncols=True) as bar:
        over = False
        while not over:
            over = await set_within(done, BAR_SECONDS)
            with suppress(WorkerError):  # not recorded yet, or the store is away
                _draw(bar, await look())


def _draw(bar: tqdm[Any], snapshot: Snapshot) -> None:
    record = snapshot.record
    bar.set_description_str(f"{record.kind} {record.status}", refresh=False)
    if progress := record.progress:
        bar.total = progress.total
        bar.n = progress.step
        bar.set_postfix_str(_figures(progress), refresh=False)
    bar.refresh()


async def _print_lines(look: Look, done: asyncio.Event) -> None:
    while not await set_within(done, LINE_SECONDS):
        with suppress(WorkerError):
            record = (await look()).record
            if progress := record.progress:
                of = f" of {progress.total}" if progress.total else ""
                eta = f", {progress.eta_seconds:.0f} s left" if progress.eta_seconds else ""
                _say(f"{record.kind}: step {progress.step}{of}, {_figures(progress)}{eta}")


def _figures(progress: ProgressSeen) -> str:
    figures = [f"{name}={value:.4g}" for name, value in progress.metrics.items()]
    return ", ".join([*figures, *([progress.message] if progress.message else [])])


def print_end(snapshot: Snapshot, links: list[str]) -> None:
    """Say how it ended, and where its files lie."""
    record = snapshot.record
    seconds = sum(record.timings.get(record.attempt, {}).values())
    _say(f"\n{record.kind} {record.status} in {seconds:.0f} s ({record.process_id})")
    if record.failure:
        _say(f"  {record.failure.code}: {record.failure.message}")
        for line in record.failure.log_tail[-10:]:
            _say(f"  | {line}")
    for link in links[:MAX_FILES]:
        parts = urlsplit(link)
        _say(f"  {unquote(parts.path) if parts.scheme == 'file' else link}")
    if len(links) > MAX_FILES:
        _say(f"  ... and {len(links) - MAX_FILES} more (action `download`)")
    if record.status is Status.INTERRUPTED:
        _say(f'  Start it again with "process_id": "{record.process_id}" to resume it.')


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal's module
