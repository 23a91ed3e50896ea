"""7. Cancel: from the wish to the end of the process's group, written down."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Figure, milliseconds, tail
from bench.in_turn import bar
from bench.store_requests import DEFAULTS
from stores.local.store import LocalStore
from tests.kit import Caller
from worker.settings import Settings

AT_A_TIME = 5
#: Seconds between SIGTERM and SIGKILL in a quick run; else as by default.
QUICK_GRACE = 2.0
#: Whom a caller asks, and how the child takes it.
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "by its owner": (True, {}),
    "by another worker": (False, {}),
    "by its owner, the child ignores SIGTERM": (True, {"ignore_sigterm": True}),
}


def run(quick: bool) -> list[Figure]:
    """p50 and p99 in milliseconds; workers with the default times, but for a quick run's
    grace, on a folder."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            return asyncio.run(_measure(Path(folder), 1, QUICK_GRACE))
        return asyncio.run(_measure(Path(folder), 8, Settings().cancel_grace_seconds))


async def _measure(folder: Path, rounds: int, grace: float) -> list[Figure]:
    store = LocalStore(folder / "store")
    times = DEFAULTS | {"slots": AT_A_TIME * len(WAYS), "cancel_grace_seconds": grace}
    owner, other = [
        Caller(store, folder / name, background=False, **times) for name in ("owner", "other")
    ]
    taken: dict[str, list[float]] = {name: [] for name in WAYS}

    async def cancels(way: str, number: int) -> None:
        by_owner, params = WAYS[way]
        asked = owner if by_owner else other
        names = [f"{list(WAYS).index(way)}-{number}-{each}" for each in range(AT_A_TIME)]
        taken[way] += await asyncio.gather(*(_cancel(owner, asked, n, params) for n in names))

    with bar(rounds, "rounds of cancels") as shown:
        for number in range(rounds):
            await asyncio.gather(*(cancels(way, number) for way in WAYS))
            shown.update()
    return [
        figure
        for name, seconds in taken.items()
        for figure in (
            milliseconds(f"{name}, p50", seconds, note=f"SIGKILL would follow after {grace:g} s"),
            tail(f"{name}, p99", seconds, 99, note=f"of {len(seconds)} cancels"),
        )
    ]


async def _cancel(owner: Caller, asked: Caller, name: str, params: dict[str, Any]) -> float:
    """Seconds until the reply that says `cancelled`, which comes when the group is gone."""
    held = asyncio.create_task(owner.start(name, seconds=3600, steps=36_000, **params))
    await owner.seen(name, "running", step=1)
    # an owner looks for notes every other second: wishes come at any moment between two looks
    await asyncio.sleep(random.uniform(0, DEFAULTS["cancel_poll_seconds"]))  # noqa: S311
    began = time.perf_counter()
    reply = await asked("cancel", process_id=name, wait_seconds=60)
    seconds = time.perf_counter() - began
    if reply["status"] != "cancelled":
        raise RuntimeError(f"{name} is {reply['status']} after a cancel")
    await held
    return seconds
