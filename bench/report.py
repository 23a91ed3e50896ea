"""What the bench found: a table, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import Figure, Goal

_VERDICTS = {True: "yes", False: "NO", None: ""}


class Section(NamedTuple):
    """What one section came to."""

    name: str
    title: str
    seconds: float
    figures: tuple[Figure, ...]
    #: Why it has no figures; empty if it has.
    fault: str = ""

    @property
    def failed(self) -> bool:
        """Whether it broke, or a count is not what it has to be."""
        return bool(self.fault) or any(f.exact and f.met is False for f in self.figures)


def figure_of(fields: dict[str, Any]) -> Figure:
    """A figure from its JSON. Whether its goal is met is worked out anew."""
    goal = Goal(*fields["goal"]) if fields["goal"] else None
    return Figure(
        **{name: value for name, value in fields.items() if name != "met"} | {"goal": goal}
    )


def section_of(fields: dict[str, Any]) -> Section:
    """A section from its JSON."""
    return Section(**fields | {"figures": tuple(map(figure_of, fields["figures"]))})


def table(sections: Iterable[Section]) -> str:
    """All figures as text: name, value, spread, goal, whether it is met."""
    rows: list[tuple[str, ...]] = []
    for section in sections:
        rows.append((f"{section.title} ({section.seconds:.0f} s)",))
        if section.fault:
            rows.append((f"  FAILED: {section.fault}",))
        rows += [_row(figure) for figure in section.figures]
        rows += [(f"    {line}",) for line in _notes(section.figures)]
    widths = [max((len(row[i]) for row in rows if len(row) > 1), default=0) for i in range(6)]
    return "\n".join(_line(row, widths) for row in rows)


def _notes(figures: Iterable[Figure]) -> list[str]:
    """Each note once, with the first figure that has it; counts say themselves."""
    noted: dict[str, str] = {}
    for figure in figures:
        if figure.note and not figure.exact:
            noted.setdefault(figure.note, figure.name)
    return [f"{name}: {note}" for note, name in noted.items()]


def _row(figure: Figure) -> tuple[str, ...]:
    spread = ""
    if figure.low is not None and figure.high is not None:
        spread = f"{_short(figure.low)} to {_short(figure.high)}"
    goal = str(figure.goal or "")
    return (
        f"  {figure.name}",
        _short(figure.value),
        figure.unit,
        spread,
        goal,
        _VERDICTS[figure.met],
    )


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    if len(row) == 1:
        return row[0]
    name, value, *rest = row
    cells = [name.ljust(widths[0]), value.rjust(widths[1])]
    cells += [cell.ljust(width) for cell, width in zip(rest, widths[2:], strict=True)]
    return "  ".join(cells).rstrip()


def _short(value: float) -> str:
    """Three figures that count, and no less than all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def save(sections: Sequence[Section], machine: dict[str, Any], path: Path, *, quick: bool) -> None:
    """Write everything as JSON: `{measured_at, quick, machine, sections: [...]}`."""
    told = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine,
        "sections": [
            {
                **section._asdict(),
                "figures": [{**f._asdict(), "met": f.met} for f in section.figures],
            }
            for section in sections
        ],
    }
    path.write_text(json.dumps(told, indent=1) + "\n")
