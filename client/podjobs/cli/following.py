"""`run`, `watch` and `resume`: follow a process on the screen, then fetch its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from podjobs.cli.bytes_bar import bytes_bar
from podjobs.cli.display import Display
from podjobs.cli.output import notes, print_json, results, size_of
from podjobs.errors import ProcessInterrupted, UnknownProcess
from podjobs.models import View
from podjobs.tracking import StatusChanged

if TYPE_CHECKING:
    from podjobs.downloads import Fetched
    from podjobs.endpoint import AsyncProcess

#: The status of the process as an exit code.
EXIT_CODES = {"completed": 0, "failed": 1, "cancelled": 3, "interrupted": 4}
INTERRUPTED_BY_KEY = 130


def exit_code(view: View) -> int:
    """The exit code for the end of a process; 4: only a new start would carry it on."""
    return 4 if view.stopped_by_platform else EXIT_CODES.get(view.status, 1)


async def follow(
    process: AsyncProcess, *, as_json: bool, logs: bool = True, resume: bool = True
) -> View:
    """Show the process until it has ended; returns its last view.

    Raises:
        UnknownProcess: there is no such process.
        ProcessInterrupted: no worker has it, and it was not to be resumed.
    """
    view: View | None = None
    with Display(process.id) as display:
        async for event in process.events(logs=logs, resume=resume):
            if isinstance(event, StatusChanged):
                view = event.view
            if as_json:
                print_json(event)
            else:
                display.show(event)
    if view is None:
        raise UnknownProcess(f"there is no process {process.id}")
    if not view.ended:
        raise ProcessInterrupted(view)
    return view


def report(view: View, *, as_json: bool) -> None:
    """How the process ended, and what to do when it did not complete."""
    if as_json:
        return
    notes.print(f"{view.process_id} {view.status}", markup=False)
    if view.failure is not None:
        for line in view.failure.log_tail[-10:]:
            notes.print(f"  | {line}", markup=False, soft_wrap=True)
        notes.print(f"  {view.failure.code}: {view.failure.message}", markup=False, soft_wrap=True)
    if view.why is not None and view.why.next_step:
        notes.print(f"  {view.why.next_step}", markup=False, soft_wrap=True)
    for refused in view.artifacts.refused:
        notes.print(f"  not stored: {refused.path}: {refused.reason}", markup=False)


async def fetch(
    process: AsyncProcess, out: Path, pattern: str | None, *, as_json: bool
) -> list[Fetched]:
    """Fetch and verify the files, with a bar; print where they are."""
    files = await process.files(pattern)
    with bytes_bar("download", sum(file.size for file in files)) as got:
        fetched = await process.download(out, pattern, got=got)
    if as_json:
        print_json({"type": "files", "out": out, "files": fetched})
        return fetched
    for file in fetched:
        renamed = file.place.relative_to(out).as_posix() != file.path
        note = f"  (from {file.path!r})" if renamed else ""
        unverified = "" if file.verified else "  (not verified: the process still runs)"
        results.print(f"{file.place}{note}{unverified}", markup=False)
    total = size_of(sum(file.size for file in fetched))
    verified = sum(file.verified for file in fetched)
    notes.print(f"{len(fetched)} files, {total}, {verified} verified by sha256")
    return fetched
