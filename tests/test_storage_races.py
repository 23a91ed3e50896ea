"""Many writers on one key, from tasks, threads and processes: one winner, no lost update.

On a folder and on Ceph RGW. moto is left out: it is not atomic.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import pytest

from storage import ObjectChanged, ObjectExists
from tests import servers
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from multiprocessing.synchronize import Barrier

    from storage import Store
    from tests.servers import Place

T = TypeVar("T")

pytestmark = [
    pytest.mark.races,
    pytest.mark.timeout(300),  # about 15 s on an idle machine, and patience with a busy one
    pytest.mark.parametrize("place", ["local", "ceph"], indirect=True),
]

WRITERS, PROCESSES = 32, 4
ROUNDS = 200
#: Each writer counts this far.
COUNTS = 7
spawn = multiprocessing.get_context("spawn")


async def create_round(stores: list[Store], round_: int, writers: Iterable[int]) -> list[int]:
    """These writers try to create one key. Returns those who were told that they did."""

    async def won(writer: int) -> bool:
        try:
            await stores[writer % len(stores)].create(f"rounds/{round_}", b"%d" % writer)
        except ObjectExists:
            return False
        return True

    writers = list(writers)
    outcomes = await asyncio.gather(*map(won, writers))
    return [writer for writer, outcome in zip(writers, outcomes, strict=True) if outcome]


async def count(store: Store, writer: int) -> list[int]:
    """Add one, `COUNTS` times, to what many others add to. Returns the numbers it made."""
    mine: list[int] = []
    while len(mine) < COUNTS:
        stored = await store.get("counter")
        number = int(stored.data.split()[0]) + 1
        try:
            await store.replace("counter", f"{number} by {writer}".encode(), stored.version)
        except ObjectChanged:
            await asyncio.sleep(random.random() / 50)  # noqa: S311 - as polite writers would
        else:
            mine.append(number)
    return mine


async def assert_one_winner_each(store: Store, winners: list[list[int]]) -> None:
    assert len(winners) == ROUNDS
    for round_, won in enumerate(winners):
        assert len(won) == 1, f"round {round_} was won by {won}"
        assert (await store.get(f"rounds/{round_}")).data == b"%d" % won[0]


async def assert_none_lost(store: Store, numbers: list[int]) -> None:
    assert sorted(numbers) == list(range(1, WRITERS * COUNTS + 1))
    assert int((await store.get("counter")).data.split()[0]) == WRITERS * COUNTS


@pytest.fixture
async def stores(place: Place) -> AsyncIterator[list[Store]]:
    """The same store, opened several times, so with separate connections, threads and locks."""
    stores = [servers.open_place(place) for _ in range(PROCESSES)]
    yield stores
    for each in stores:
        await each.close()


async def test_tasks_create_one_object(store: Store, stores: list[Store]) -> None:
    winners = [await create_round(stores, round_, range(WRITERS)) for round_ in range(ROUNDS)]
    await assert_one_winner_each(store, winners)


async def test_tasks_count_together(store: Store, stores: list[Store]) -> None:
    await store.create("counter", b"0")
    counts = await asyncio.gather(
        *(count(stores[writer % PROCESSES], writer) for writer in range(WRITERS))
    )
    await assert_none_lost(store, [*chain(*counts)])


# ---- the same from processes, which start each round together

together: Barrier


def meet_at(barrier: Barrier) -> None:
    """Run once in each process."""
    global together  # noqa: PLW0603 - the only way a barrier gets into a pool's processes
    together = barrier


def in_processes(work: Callable[[Place, list[int]], list[T]], place: Place) -> list[list[T]]:
    """`work` in each process with its share of the writers."""
    shares = [list(range(first, WRITERS, PROCESSES)) for first in range(PROCESSES)]
    barrier = spawn.Barrier(PROCESSES, timeout=PATIENCE)
    with ProcessPoolExecutor(PROCESSES, spawn, meet_at, (barrier,)) as pool:
        return list(pool.map(work, [place] * PROCESSES, shares))


def create_rounds(place: Place, writers: list[int]) -> list[list[int]]:
    async def work() -> list[list[int]]:
        store = servers.open_place(place)
        won = []
        for round_ in range(ROUNDS):
            together.wait()  # nothing else runs on this loop meanwhile
            won.append(await create_round([store], round_, writers))
        await store.close()
        return won

    return asyncio.run(work())


def count_all(place: Place, writers: list[int]) -> list[int]:
    async def work() -> list[int]:
        store = servers.open_place(place)
        together.wait()
        numbers = await asyncio.gather(*(count(store, writer) for writer in writers))
        await store.close()
        return [*chain(*numbers)]

    return asyncio.run(work())


async def test_processes_create_one_object(store: Store, place: Place) -> None:
    shares = await asyncio.to_thread(in_processes, create_rounds, place)
    winners = [[*chain(*won)] for won in zip(*shares, strict=True)]
    await assert_one_winner_each(store, winners)


async def test_processes_count_together(store: Store, place: Place) -> None:
    await store.create("counter", b"0")
    shares = await asyncio.to_thread(in_processes, count_all, place)
    await assert_none_lost(store, [*chain(*shares)])
