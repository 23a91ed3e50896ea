"""Measuring several ways to do a thing in one run, in turn, so that a noisy machine hits all."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping

from tqdm import tqdm

Way = Callable[[], Awaitable[object]]


def bar(total: int, what: str) -> tqdm[None]:
    """How far a section has come, on standard error; seldom where that is a log."""
    seldom = 0.1 if sys.stderr.isatty() else 10
    return tqdm(total=total, desc=what, file=sys.stderr, leave=False, mininterval=seldom)


async def seconds_in_turn(
    ways: Mapping[str, Way], rounds: int, what: str, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds that each way took in each round, after `warm_up` rounds that do not count.

    Every other round goes backwards: who comes second would else always find warm caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with bar((rounds + warm_up) * len(ways), what) as shown:
        for number in range(rounds + warm_up):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                await ways[name]()
                if number >= warm_up:
                    taken[name].append(time.perf_counter() - began)
                shown.update()
    return taken
