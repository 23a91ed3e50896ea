"""The figures as a picture: one panel a section, a bar a figure, a mark where the goal is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure
from bench.report import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bars of a panel that differ more than this are drawn on a logarithmic scale.
LINEAR_SPAN = 30
MET, MISSED, PLAIN = "#2a9d8f", "#d1495b", "#6c8ebf"


def draw(sections: Sequence[Section], path: Path) -> bool:
    """Draw what can be compared: of each section the figures of its most frequent unit.

    Returns whether there was anything.
    """
    from matplotlib.figure import Figure as Picture

    shown = [(section, comparable(section.figures)) for section in sections]
    shown = [(section, figures) for section, figures in shown if figures]
    if not shown:
        return False
    heights = [1.2 + 0.28 * len(figures) for _, figures in shown]
    picture = Picture(figsize=(11, sum(heights)), layout="constrained")
    panels = picture.subplots(len(shown), height_ratios=heights, squeeze=False)
    for (panel,), (section, figures) in zip(panels, shown, strict=True):
        _draw_panel(panel, section.title, figures)
    picture.savefig(path, dpi=110)
    return True


def comparable(figures: Sequence[Figure]) -> list[Figure]:
    """Those of the unit that most of them have, and that are not zero all."""
    units = Counter(figure.unit for figure in figures)
    if not units:
        return []
    unit = units.most_common(1)[0][0]
    chosen = [figure for figure in figures if figure.unit == unit]
    return chosen if any(figure.value for figure in chosen) else []


def _draw_panel(panel: Axes, title: str, figures: Sequence[Figure]) -> None:
    colours = [{True: MET, False: MISSED, None: PLAIN}[figure.met] for figure in figures]
    values = [figure.value for figure in figures]
    rows = range(len(figures))
    panel.barh(rows, values, color=colours, height=0.7)
    for row, figure in zip(rows, figures, strict=True):
        if figure.low is not None and figure.high is not None:
            panel.plot([figure.low, figure.high], [row, row], color="black", linewidth=1.2)
        if figure.goal is not None:
            panel.plot([figure.goal.value] * 2, [row - 0.45, row + 0.45], "k:", linewidth=1.5)
    positive = [value for value in values if value > 0]
    if min(values) >= 0 and max(positive) > LINEAR_SPAN * min(positive):
        panel.set_xscale("log")
    panel.set_yticks(list(rows), [figure.name for figure in figures], fontsize=8)
    panel.invert_yaxis()
    panel.set_title(title, loc="left", fontsize=10)
    panel.set_xlabel(figures[0].unit, fontsize=8)
