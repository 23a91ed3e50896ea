"""How far a run is, for a person at a terminal: a bar; or lines, where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tqdm import tqdm

#: How often a line is printed where there is no terminal.
LINE_SECONDS: Final = 15.0
_LAYOUT: Final = (
    "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
)


def new_bar(label: str) -> tqdm[Any]:
    """A bar that begins with `label`."""
    return tqdm(desc=label, total=1, bar_format=_LAYOUT, dynamic_ncols=True)


def move(bar: tqdm[Any], step: int, total: int | None, figures: str) -> None:
    """Set what the bar shows when it is drawn next."""
    bar.total = total
    bar.n = step
    bar.set_postfix_str(figures, refresh=False)


def figures_of(metrics: Mapping[str, float], message: str) -> str:
    """`loss=0.5, training`."""
    figures = [f"{name}={value:.4g}" for name, value in metrics.items()]
    return ", ".join([*figures, *([message] if message else [])])


def line(kind: str, step: int, total: int | None, figures: str) -> str:
    """`sleep: step 3 of 9, loss=0.5`."""
    of = f" of {total}" if total else ""
    return ", ".join(filter(None, [f"{kind}: step {step}{of}", figures]))
