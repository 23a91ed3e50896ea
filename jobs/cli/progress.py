"""How far a run is, for a person at a terminal: a bar; or lines, where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tqdm import tqdm

#: How often a line is printed where there is no terminal.
LINE_SECONDS: Final = 15.0
#: The bar has so many characters at least: figures that leave less room are left out.
BAR_COLUMNS: Final = 12
#: Before the first step there is nothing to draw a bar of.
_LABEL: Final = "{desc} [{elapsed}]"
_LAYOUT: Final = (
    "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
)


def new_bar(label: str) -> tqdm[Any]:
    """A bar that begins with `label`."""
    return tqdm(desc=label, total=1, bar_format=_LABEL, dynamic_ncols=True)


def move(bar: tqdm[Any], step: int, total: int | None, figures: str) -> None:
    """Set what the bar shows when it is drawn next."""
    bar.total = total
    bar.n = step
    bar.bar_format = _LAYOUT
    fixed = len(f"{bar.desc} 100%|| {step}/{total} [0:00:00<0:00:00, ]") + BAR_COLUMNS
    bar.set_postfix_str(_fitting(figures, (bar.format_dict["ncols"] or 80) - fixed), refresh=False)


def _fitting(figures: str, columns: int) -> str:
    """As many of the figures, from the first, as fit into so many columns."""
    while len(figures) > max(columns, 0):
        figures = figures.rpartition(", ")[0]
    return figures


def figures_of(metrics: Mapping[str, float], message: str) -> str:
    """`loss=0.5, training`."""
    figures = [f"{name}={value:.4g}" for name, value in metrics.items()]
    return ", ".join([*figures, *([message] if message else [])])


def line(kind: str, step: int, total: int | None, figures: str) -> str:
    """`sleep: step 3 of 9, loss=0.5`."""
    of = f" of {total}" if total else ""
    return ", ".join(filter(None, [f"{kind}: step {step}{of}", figures]))
