"""A figure of the bench: what was measured, how far it spread, and what it should be."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

Sign = Literal["<=", ">=", "==", "<"]
_HOLDS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt}


class Goal(NamedTuple):
    """What a figure should be, in the figure's unit."""

    sign: Sign
    value: float

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


class Figure(NamedTuple):
    """One measured number; as JSON an object of these fields."""

    name: str
    value: float
    #: `ms`, `s`, `MB`, `MB/s`, `1/s`, `requests`, `ratio`, ...
    unit: str
    #: First and third quartile, or the ends of what was seen, as the name says.
    low: float | None = None
    high: float | None = None
    goal: Goal | None = None
    #: A count, the same on every machine: to miss its goal is a fault and fails the bench.
    exact: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is as it should be; None without a goal."""
        return _HOLDS[self.goal.sign](self.value, self.goal.value) if self.goal else None


def median(
    name: str, values: Sequence[float], unit: str, *, goal: Goal | None = None, note: str = ""
) -> Figure:
    """The median of `values`, which are in `unit`, with quartiles."""
    low, middle, high = quartiles(values)
    return Figure(name, middle, unit, low, high, goal, note=note)


def milliseconds(
    name: str, seconds: Sequence[float], *, goal: Goal | None = None, note: str = ""
) -> Figure:
    """The median of times, with quartiles."""
    return median(name, [1000 * each for each in seconds], "ms", goal=goal, note=note)


def tail(
    name: str, seconds: Sequence[float], percent: int, *, goal: Goal | None = None, note: str = ""
) -> Figure:
    """The time in ms that `percent` of all do not exceed, by linear interpolation."""
    times = sorted(1000 * each for each in seconds)
    place = (len(times) - 1) * percent / 100
    below = times[int(place)]
    above = times[min(int(place) + 1, len(times) - 1)]
    return Figure(name, below + (above - below) * (place % 1), "ms", goal=goal, note=note)


def ratio(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    goal: Goal | None = None,
    note: str = "",
) -> Figure:
    """Median of ours through median of theirs, measured in turn; the spread is that of the pairs.

    Give rates, if more is better, or times, if less is.
    """
    low, _, high = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
    value = statistics.median(ours) / statistics.median(theirs)
    return Figure(name, value, "ratio", low, high, goal, note=note)


def count(name: str, value: int, *, unit: str = "requests", goal: Goal, note: str = "") -> Figure:
    """An exact number that has to be as `goal` says."""
    return Figure(name, value, unit, goal=goal, exact=True, note=note)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, by linear interpolation; of one value, itself."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
