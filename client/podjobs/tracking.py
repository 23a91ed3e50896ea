"""From the views of a process to the events that a caller follows. Pure.

Views come from several sources (the record behind a link, RunPod's job, a worker), and an older one
may arrive after a newer one. The tracker drops what is older than what it has seen, so that steps
never go backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from podjobs.models import RemoteFile, View


@dataclass(frozen=True)
class StatusChanged:
    """The process has another status, phase or attempt."""

    view: View
    type: Literal["status"] = "status"


@dataclass(frozen=True)
class Progressed:
    """A new highest step, or another message. `unit` is `bytes` while inputs are fetched."""

    view: View
    step: int
    total: int | None
    unit: Literal["steps", "bytes"]
    type: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Logged:
    """A line that the job printed. `left_out` lines are missing before it."""

    attempt: int
    number: int
    line: str
    left_out: int = 0
    type: Literal["log"] = "log"


@dataclass(frozen=True)
class ArtifactsStored:
    """More files are stored. `new` names them where a worker could be asked without waking one."""

    count: int
    total_bytes: int
    new: tuple[RemoteFile, ...] = ()
    type: Literal["artifacts"] = "artifacts"


Event: TypeAlias = "StatusChanged | Progressed | Logged | ArtifactsStored"


class Tracker:
    """Turns each accepted view into events."""

    def __init__(self) -> None:
        self.view: View | None = None
        #: Highest step so far, by unit.
        self._highest: dict[str, int] = {}
        self._message = ""
        self._stored = (0, 0)

    def accept(self, view: View) -> list[Event]:
        """The events of a view: none if a newer one is known."""
        known = self.view
        if known is not None and _older(view, known):
            return []
        self.view = view
        events: list[Event] = []
        if known is None or _standing(view) != _standing(known):
            events.append(StatusChanged(view))
        events += self._progress(view)
        events += self._artifacts(view)
        return events

    def _progress(self, view: View) -> list[Event]:
        progress = view.progress
        if progress is None:
            return []
        unit: Literal["steps", "bytes"] = "bytes" if view.phase == "inputs" else "steps"
        highest = self._highest.get(unit, -1)
        if progress.step < highest:
            return []  # an attempt repeats the steps since its checkpoint
        if progress.step == highest and progress.message == self._message:
            return []
        self._highest[unit], self._message = progress.step, progress.message
        return [Progressed(view, progress.step, progress.total, unit)]

    def _artifacts(self, view: View) -> list[Event]:
        """One event when something was stored; a new attempt may begin with fewer files."""
        stored = (view.artifacts.count, view.artifacts.total_bytes)
        before, self._stored = self._stored, stored
        return [ArtifactsStored(*stored)] if stored != before and stored[0] else []


def _standing(view: View) -> tuple[str, str, int]:
    return view.status, view.phase, view.attempt


def _older(view: View, known: View) -> bool:
    """Whether `known` is newer. A view without a revision comes from the platform's queue."""
    if view.revision == 0:
        return known.revision > 0
    if view.revision != known.revision:
        return view.revision < known.revision
    if known.ended:
        return True
    step = view.progress.step if view.progress else -1
    return step < (known.progress.step if known.progress else -1)
