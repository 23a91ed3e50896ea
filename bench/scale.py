"""9. Scale: a page of the list and a clean-up, among few processes and among many.

In a folder, and in a bucket (Ceph RGW, which keeps all in memory; not with `--quick`). All have
their rows, and those have records that are looked at: nothing reads the others. What is asked is
the same at every size. What a bucket takes for it hardly changes; a folder has no order, so that
each list reads the names of all that lie in it: rows lie in slices, a thousand in each here.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import aiohttp
from tqdm import tqdm
from yarl import URL

from bench.asked import requests_of
from bench.figures import Figure, Goal, count, milliseconds, ratio
from bench.in_turn import Way, bar, seconds_in_turn
from records.index import index_key
from records.keys import record_key
from records.record import Record
from storage import Store
from stores.local.store import LocalStore
from tests.aged import cleaned, cleaner, ended
from tests.kit import Caller
from tests.servers import S3Server, open_place, run_ceph
from worker.meter import Meter

#: Of the smallest, ten pages are not all there is: a tenth page is as long everywhere.
FOLDERS, QUICK_FOLDERS, BUCKETS = (1_000, 20_000, 100_000), (1_000, 3_000), (1_000, 20_000, 100_000)
EXPIRED, LIMIT, NTH = 100, 50, 10
#: Processes that have a record beside those that expire: what a clean-up looks at.
NEIGHBOURS = 200
SENDERS = 32
ROUNDS, CLEAN_UPS = 10, 3
FLAT = Goal("<=", 2)


class Place:
    """A store with so many processes, the oldest of which have expired."""

    def __init__(self, name: str, there: int, store: Store, meter: Meter, scratch: Path) -> None:
        self.name = f"{there:,} in a {name}"
        self.store = store
        self._there = there
        self._meter = meter
        self._scratch = scratch
        self._caller = Caller(store, scratch / "caller", background=False)
        self._cursor: str | None = None
        self._young, self._old = ended("young", 5), ended("old", 60)

    def way(self, what: str) -> Way:
        """To have the `first page` or the `tenth page` shown."""
        cursor = self._cursor if what == "tenth page" else None
        return lambda: self._caller("processes", limit=LIMIT, cursor=cursor)

    async def turn_pages(self) -> None:
        """Find out where the tenth page begins."""
        for _ in range(NTH - 1):
            page = await self._caller("processes", limit=LIMIT, cursor=self._cursor)
            self._cursor = page["next_cursor"]

    async def clean(self) -> tuple[float, int]:
        """Have the expired removed, who are brought back first; seconds and requests it took."""
        await _put(self.store, list(self.records())[-EXPIRED:])
        await self.store.delete(["locks/retention"])  # it knows how far the last sweep came
        worker = cleaner(self.store, self._scratch / "cleaner")
        began, before = time.perf_counter(), requests_of(self._meter).total()
        went = await cleaned(worker)
        assert went == {"processes": EXPIRED}, went
        return time.perf_counter() - began, requests_of(self._meter).total() - before

    async def requests(self, way: Way) -> int:
        """How many it takes."""
        before = requests_of(self._meter).total()
        await way()
        return requests_of(self._meter).total() - before

    def rows(self) -> list[str]:
        return [index_key(record) for record in self.records()]

    def records(self) -> Iterator[Record]:
        for number in range(self._there):
            record = self._young if number < self._there - EXPIRED else self._old
            yield record.model_copy(
                update={
                    "process_id": f"p{number:06d}",
                    "created_at": record.created_at - timedelta(seconds=number),
                }
            )


async def _put(store: Store, records: list[Record]) -> None:
    puts = [(record_key(record.process_id), record.encode()) for record in records]
    puts += [(index_key(record), b"") for record in records]
    for start in range(0, len(puts), SENDERS):
        await asyncio.gather(*(store.put(*each) for each in puts[start : start + SENDERS]))


def run(quick: bool) -> list[Figure]:
    """Of each size: requests, which have to be the same, and times beside the smallest one's."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            return asyncio.run(_in_folders(Path(folder), QUICK_FOLDERS, clean_ups=1))
        found = asyncio.run(_in_folders(Path(folder), FOLDERS, CLEAN_UPS))
        with run_ceph() as server:
            return found + asyncio.run(_in_buckets(server, Path(folder)))


async def _in_folders(folder: Path, sizes: tuple[int, ...], clean_ups: int) -> list[Figure]:
    places = []
    with bar(sum(sizes), "processes in folders") as shown:
        for there in sizes:
            meter, root = Meter(), folder / f"store-{there}"
            place = Place("folder", there, LocalStore(root, meter), meter, folder / str(there))
            await asyncio.to_thread(_write_rows, root, place.rows())
            places.append(place)
            shown.update(there)
    return await _measure(places, clean_ups)


def _write_rows(root: Path, keys: list[str]) -> None:
    for folder in {(root / key).parent for key in keys}:
        folder.mkdir(parents=True)
    for key in keys:
        (root / key).touch()


async def _in_buckets(server: S3Server, folder: Path) -> list[Figure]:
    places = []
    with bar(sum(BUCKETS), "processes in buckets") as shown:
        for there in BUCKETS:
            meter = Meter()
            store = open_place(server.place(), meter)
            place = Place("bucket", there, store, meter, folder / f"bucket-{there}")
            await _put_rows(store, place.rows(), shown)
            places.append(place)
    return await _measure(places, CLEAN_UPS)


async def _put_rows(store: Store, keys: list[str], shown: tqdm[None]) -> None:
    """By links, which takes a third of the time of `put`."""
    left = iter(keys)

    async def send() -> None:
        for key in left:
            link = await store.presign_put(key, expires_in=600)
            async with client.put(URL(link, encoded=True), data=b"") as answer:
                answer.raise_for_status()
            shown.update()

    async with aiohttp.ClientSession() as client:
        await asyncio.gather(*(send() for _ in range(SENDERS)))


async def _measure(places: list[Place], clean_ups: int) -> list[Figure]:
    """Of places from the smallest to the largest, what each costs. Closes them."""
    found: list[Figure] = []
    for place in places:
        await _put(place.store, list(islice(place.records(), NEIGHBOURS)))
        await place.turn_pages()
    for what in ("first page", "tenth page"):
        ways = {place.name: place.way(what) for place in places}
        taken = await seconds_in_turn(ways, ROUNDS, what)
        asked = [await place.requests(ways[place.name]) for place in places]
        found += _figures(f"{what} of {LIMIT}", taken, asked, Goal("==", 1))
    cleanings: dict[str, list[tuple[float, int]]] = {place.name: [] for place in places}
    with bar(clean_ups * len(places), "clean-up") as shown:
        for number in range(clean_ups):
            for place in places[:: 1 if number % 2 else -1]:
                cleanings[place.name].append(await place.clean())
                shown.update()
    for place in places:
        await place.store.close()
    seconds = {name: [each[0] for each in runs] for name, runs in cleanings.items()}
    asked = [max(each[1] for each in runs) for runs in cleanings.values()]
    return found + _figures(f"clean-up of {EXPIRED}", seconds, asked, Goal("==", asked[0]))


def _figures(
    what: str, taken: dict[str, list[float]], asked: list[int], flat: Goal
) -> list[Figure]:
    smallest, *others = taken
    found = [
        count(f"{what} among {name}, requests", requests, goal=flat)
        for name, requests in zip(taken, asked, strict=True)
    ]
    found.append(milliseconds(f"{what} among {smallest}, time", taken[smallest]))
    found += [
        ratio(
            f"{what} among {name}, time / {smallest}",
            taken[name],
            taken[smallest],
            goal=FLAT,
        )
        for name in others
    ]
    return found
