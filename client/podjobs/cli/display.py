"""A process on the screen while it is followed.

At a terminal a few lines are drawn anew: status, bar, metrics with a sparkline, files, the reason
why it is slow. Elsewhere each change is one plain line. Lines of the job's log go above.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from podjobs.cli.output import coloured, duration_of, notes, size_of
from podjobs.tracking import ArtifactsStored, Logged, Progressed, StatusChanged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import RenderableType

    from podjobs.models import View
    from podjobs.tracking import Event

BLOCKS = "▁▂▃▄▅▆▇█"
#: Values of one metric in the sparkline.
SPARKLINE = 24
#: A line of progress at most this often where nothing can be drawn anew.
LINE_SECONDS = 10.0
#: Names of phases on the screen.
PHASES = {
    "inputs": "fetching inputs",
    "startup": "starting",
    "preparing": "preparing",
    "upload": "storing files",
}


class Display:
    """Shows the events of one process; use it with `with`."""

    def __init__(self, process_id: str) -> None:
        self._id = process_id
        self._view: View | None = None
        self._metrics: dict[str, deque[float]] = {}
        self._live = Live(self._drawn(), console=notes, refresh_per_second=4, transient=True)
        self._line_at = 0.0

    def __enter__(self) -> Display:
        if notes.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Take one event up."""
        match event:
            case Logged():
                if event.left_out:
                    notes.print(f"({event.left_out} lines left out)", style="dim")
                notes.print(event.line, markup=False, soft_wrap=True)
            case StatusChanged():
                self._view = event.view
                if not notes.is_terminal:
                    notes.print(_headline(event.view), soft_wrap=True)
            case Progressed():
                self._view = event.view
                self._remember_metrics(event)
                self._plain_progress(event)
            case ArtifactsStored():
                pass  # drawn from the view
        if notes.is_terminal:
            self._live.update(self._drawn())

    def _remember_metrics(self, event: Progressed) -> None:
        metrics = event.view.progress.metrics if event.view.progress else {}
        for name, value in metrics.items():
            if value is not None:
                self._metrics.setdefault(name, deque(maxlen=SPARKLINE)).append(value)

    def _plain_progress(self, event: Progressed) -> None:
        now = asyncio.get_running_loop().time()
        if notes.is_terminal or now - self._line_at < LINE_SECONDS:
            return
        self._line_at = now
        notes.print(_steps(event.view), soft_wrap=True)

    def _drawn(self) -> RenderableType:
        view = self._view
        if view is None:
            return Text(f"{self._id}  waiting for the endpoint")
        parts: list[RenderableType] = [Text.from_markup(_headline(view))]
        if view.progress is not None:
            parts.append(_bar(view))
        parts += [
            Text(f"  {name} {values[-1]:.4g}  {sparkline(values)}")
            for name, values in self._metrics.items()
        ]
        if view.artifacts.count:
            stored = f"{view.artifacts.count} files, {size_of(view.artifacts.total_bytes)}"
            parts.append(Text(f"  stored: {stored}", style="dim"))
        if view.why is not None:
            parts.append(Text(f"  {view.why.message}: {view.why.next_step}", style="yellow"))
        return Group(*parts)


def sparkline(values: Sequence[float]) -> str:
    """The values as a line of blocks, lowest to highest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in values)


def _headline(view: View) -> str:
    words = [view.process_id, coloured(view.status)]
    if view.status == "queued" and view.queue_position:
        words.append(f"position {view.queue_position}")
    if view.phase in PHASES:
        words.append(PHASES[view.phase])
    if view.attempt > 1:
        words.append(f"attempt {view.attempt}")
    return "  ".join(words)


def _steps(view: View) -> str:
    """How far it is, in words: `420 of 1000, 42%, 3:20 left`."""
    progress = view.progress
    if progress is None:
        return ""
    in_bytes = view.phase == "inputs"
    done = size_of(progress.step) if in_bytes else str(progress.step)
    words = [done]
    if progress.total:
        words[0] += f" of {size_of(progress.total) if in_bytes else progress.total}"
        words.append(f"{100 * progress.step / progress.total:.0f}%")
    if progress.eta_seconds is not None:
        words.append(f"{duration_of(progress.eta_seconds)} left")
    if progress.message:
        words.append(progress.message)
    return ", ".join(words)


def _bar(view: View) -> RenderableType:
    progress = view.progress
    assert progress is not None
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(overflow="ellipsis", no_wrap=True)
    share = progress.step / progress.total if progress.total else None
    bar = ProgressBar(total=1.0, completed=share or 0.0, width=24, pulse=share is None)
    line.add_row(bar, Text(_steps(view)))
    return line
