"""A store with millions of processes that holds none of them: their keys are computed."""

# ruff: noqa: ARG002 - the contract passes some things that this store has no use for
from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from heapq import merge
from itertools import islice

from records.index import index_key
from records.keys import record_key
from records.record import Record, Writer, new_record
from storage import (
    MAX_PAGE,
    FolderPage,
    Listed,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    Page,
    Stored,
)

_WRITER = Writer(worker_id="w", nonce="n")


class ManyProcesses:
    """What of `storage.Store` the list of processes, the cleaner and presence use.

    Process `i` of so many began and ended `i` steps before `now`. Each has a row, a record and one
    artifact. Only what is written here, or removed, takes memory. The clock stands still.
    """

    url = "computed://many"

    def __init__(self, there: int, step: timedelta, now: datetime) -> None:
        self.there = there
        self._step = step
        self._born = self._now = now
        #: Keys in order: the row of each, then artifact and record of each.
        self._computed = range(3 * there)
        #: Each search among them begins at the same ones.
        self._key = lru_cache(maxsize=1 << 16)(self._computed_key)
        self._written: dict[str, tuple[bytes, datetime]] = {}
        #: Those of `_written` that are not computed.
        self._new: list[str] = []
        self._removed: set[str] = set()
        #: Requests as a bucket would be sent them, without those for the cleaner's lock.
        self.asked: Counter[str] = Counter()

    def let_pass(self, days: float) -> None:
        """All that there is grows older."""
        self._now += timedelta(days=days)

    # ---- the contract

    async def get(
        self, key: str, *, cached: Stored | None = None, limit: int | None = None
    ) -> Stored:
        self._count("GetObject", key)
        data = self._data(key)
        if data is None:
            raise ObjectNotFound(key)
        age = self._age_of(key)
        return Stored(data, _version(data), self._now.timestamp() - age, age)

    async def put(self, key: str, data: bytes, *, content_type: str | None = None) -> str:
        self._count("PutObject", key)
        if not self._is_computed(key) and key not in self._written:
            insort(self._new, key)
        self._removed.discard(key)
        self._written[key] = data, self._now
        return _version(data)

    async def create(self, key: str, data: bytes) -> str:
        if self._data(key) not in (None, data):
            raise ObjectExists(key)
        return await self.put(key, data)

    async def replace(self, key: str, data: bytes, version: str) -> str:
        found = self._data(key)
        if found is None or _version(found) != version:
            raise ObjectChanged(key)
        return await self.put(key, data)

    async def delete(self, keys: Sequence[str]) -> None:
        self.asked["DeleteObjects"] += -(-len(keys) // MAX_PAGE)
        for key in keys:
            if self._is_computed(key):
                self._removed.add(key)
            elif key in self._written:
                del self._new[bisect_left(self._new, key)]
            self._written.pop(key, None)

    async def list(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> Page:
        self.asked["ListObjectsV2"] += 1
        after = max(prefix, start_after or "")
        keys = list(islice(self._keys_after(prefix, after), limit + 1))
        rows = [Listed(key, 0, self._now.timestamp() - self._age_of(key)) for key in keys[:limit]]
        return Page(rows, keys[limit - 1] if len(keys) > limit else None)

    async def list_folders(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> FolderPage:
        self.asked["ListObjectsV2"] += 1
        after = prefix if start_after is None else f"{prefix}{start_after}/\U0010ffff"
        names: list[str] = []
        while len(names) <= limit:
            key = next(self._keys_after(prefix, after), None)
            if key is None:
                break
            names.append(key.removeprefix(prefix).partition("/")[0])
            after = f"{prefix}{names[-1]}/\U0010ffff"
        more = len(names) > limit
        return FolderPage(names[:limit], names[limit - 1] if more else None)

    # ---- what is computed

    def row(self, number: int) -> str:
        return index_key(self._record(number))

    def _keys_after(self, prefix: str, after: str) -> Iterator[str]:
        computed = self._computed[bisect_right(self._computed, after, key=self._key) :]
        new = islice(self._new, bisect_right(self._new, after), None)
        for key in merge(map(self._key, computed), new):
            if not key.startswith(prefix):
                return
            if key not in self._removed:
                yield key

    def _computed_key(self, place: int) -> str:
        if place < self.there:
            return self.row(place)
        number, of_record = divmod(place - self.there, 2)
        name = _name(number)
        return record_key(name) if of_record else f"processes/{name}/attempts/1/artifacts/0"

    def _is_computed(self, key: str) -> bool:
        place = bisect_left(self._computed, key, key=self._key)
        return place < len(self._computed) and self._key(place) == key

    def _data(self, key: str) -> bytes | None:
        if key in self._written:
            return self._written[key][0]
        if key in self._removed or not self._is_computed(key):
            return None
        return self._record(_number(key)).encode() if key.endswith("record.json") else b""

    def _record(self, number: int) -> Record:
        then = self._born - number * self._step
        return _TEMPLATE.model_copy(
            update={
                "process_id": _name(number),
                "created_at": then,
                "started_at": then,
                "updated_at": then,
                "finished_at": then,
            }
        )

    def _age_of(self, key: str) -> float:
        if key in self._written:
            return (self._now - self._written[key][1]).total_seconds()
        return (self._now - self._born + _number(key) * self._step).total_seconds()

    def _count(self, operation: str, key: str) -> None:
        if not key.startswith("locks/"):
            self.asked[operation] += 1


def _name(number: int) -> str:
    return f"p{number:08d}"


def _number(key: str) -> int:
    """Of the process that a computed key is of: `index/...~p00000001~...`, or one of its files."""
    name = key.split("~")[1] if key.startswith("index/") else key.split("/")[1]
    return int(name[1:])


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _ended(then: datetime) -> Record:
    record = new_record(
        process_id="p", kind="sleep", params={}, request_hash="h", writer=_WRITER, now=then
    )
    return record.running(then).completed(then, None).written(then)


_TEMPLATE = _ended(datetime(2026, 1, 1, tzinfo=UTC))
