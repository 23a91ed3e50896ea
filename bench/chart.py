"""The figures as a picture: how near each is to its goal, and by section what has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from bench.figures import Figure, Goal
from bench.report import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
TITLE_CHARACTERS = 70
#: Bars of a panel that differ more than this are drawn on a logarithmic scale.
LINEAR_SPAN = 30
#: Of a bar of the goals, as a multiple of its goal.
LONGEST = 4.0
MET, MISSED, PLAIN = "#2a9d8f", "#d1495b", "#6c8ebf"


class Bar(NamedTuple):
    """A name, how long it is, from where to where its spread is, and its colour."""

    name: str
    value: float
    low: float
    high: float
    colour: str


class Panel(NamedTuple):
    """Bars that can be compared; `limit` is where a line is drawn."""

    title: str
    unit: str
    bars: Sequence[Bar]
    limit: float | None = None

    @property
    def height(self) -> float:
        """In inches."""
        return 0.9 + 0.2 * len(self.bars)


def draw(sections: Sequence[Section], path: Path) -> bool:
    """Draw goals in one panel, exact counts apart, and of each section what it compares without.

    Returns whether there was anything.
    """
    from matplotlib.figure import Figure as Picture

    panels = [panel for panel in (of_goals(sections), *map(of_section, sections)) if panel.bars]
    if not panels:
        return False
    columns = in_columns(panels)
    height = max(sum(panel.height for panel in column) for column in columns)
    picture = Picture(figsize=(9 * len(columns), height), layout="constrained")
    for place, column in zip(
        picture.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True
    ):
        heights = [panel.height for panel in column]
        rest = height - sum(heights)
        axes = place.subplots(len(column) + 1, height_ratios=[*heights, max(rest, 0.01)])
        for each, panel in zip(axes, column, strict=False):
            _draw_panel(each, panel)
        axes[-1].set_axis_off()
    picture.savefig(path, dpi=90)
    return True


def of_goals(sections: Sequence[Section]) -> Panel:
    """Each figure that has a goal and is no exact count: how much it is of what it may be.

    1 is the goal, and less is better: where a figure should be large (`>=`), it is the goal through
    it. Nothing is drawn longer than `LONGEST`; a goal of 0 that is missed is as long.
    """
    bars = []
    for section in sections:
        number = section.title.partition(".")[0]
        for figure in section.figures:
            if figure.goal is None or figure.exact:
                continue
            value, *ends = [_used(end, figure.goal) for end in (figure.value, *_spread(figure))]
            colour = MET if figure.met else MISSED
            bars.append(Bar(f"{number}. {figure.name}", value, min(ends), max(ends), colour))
    return Panel(
        "What has a goal: how much of it is used", "1 is the goal, less is better", bars, 1
    )


def _used(value: float, goal: Goal) -> float:
    whole, part = (goal.value, value) if goal.sign != ">=" else (value, goal.value)
    if whole <= 0:
        return 0.0 if part <= whole else LONGEST
    return min(max(0.0, part / whole), LONGEST)


def of_section(section: Section) -> Panel:
    """What of it has no goal and the unit that most of that has."""
    figures = comparable([figure for figure in section.figures if figure.goal is None])
    bars = [Bar(figure.name, figure.value, *_spread(figure), PLAIN) for figure in figures]
    return Panel(section.title, figures[0].unit if figures else "", bars)


def comparable(figures: Sequence[Figure]) -> list[Figure]:
    """Those of the unit that most of them have, if that is some, and not all of them zero."""
    units = Counter(figure.unit for figure in figures)
    if not units:
        return []
    unit = units.most_common(1)[0][0]
    chosen = [figure for figure in figures if figure.unit == unit]
    return chosen if len(chosen) > 1 and any(figure.value for figure in chosen) else []


def in_columns(panels: Sequence[Panel]) -> list[list[Panel]]:
    """In their order, in columns about as high as each other, as far as panels are."""
    share = sum(panel.height for panel in panels) / COLUMNS
    columns: list[list[Panel]] = []
    above = 0.0
    for panel in panels:
        if above + panel.height / 2 >= share * len(columns):
            columns.append([])
        columns[-1].append(panel)
        above += panel.height
    return columns


def _spread(figure: Figure) -> tuple[float, float]:
    low, high = figure.low, figure.high
    return (figure.value if low is None else low, figure.value if high is None else high)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    rows = range(len(panel.bars))
    values = [bar.value for bar in panel.bars]
    axes.barh(rows, values, color=[bar.colour for bar in panel.bars], height=0.7)
    for row, bar in zip(rows, panel.bars, strict=True):
        axes.plot([bar.low, bar.high], [row, row], color="black", linewidth=1.2)
    if panel.limit is not None:
        axes.axvline(panel.limit, color="black", linestyle=":", linewidth=1.5)
    elif 0 < LINEAR_SPAN * min(values) < max(values):
        axes.set_xscale("log")
    axes.set_yticks(list(rows), [bar.name for bar in panel.bars], fontsize=8)
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    axes.set_title(fill(panel.title, TITLE_CHARACTERS), loc="left", fontsize=10)
    axes.set_xlabel(panel.unit, fontsize=8)
