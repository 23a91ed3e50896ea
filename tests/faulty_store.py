"""A store between the worker and a real one: it counts, fails, hangs and stops on request.

Every call has a name (`get`, `stat`, `put`, ..., that of the method) and the key it is about. A
test says in advance what shall befall the calls that match, and finds in `calls` what was asked, in
the order in which it was asked. Making a link asks nobody, so only `presign_parts` is such a call.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from records.record import Record
from storage import StorageMisconfigured, StorageUnavailable, StoreHealth
from stores.streams import closing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from storage import Store

#: The calls that change what is stored.
WRITES = ("put", "create", "replace", "delete", "upload", "upload_stream", "join_parts")


class Call(NamedTuple):
    """One call, as it was asked for."""

    name: str
    #: All keys, for `delete`, one a line; the prefix, for `list` and `list_folders`.
    key: str
    #: What was to be written, if the call carried bytes.
    data: bytes | None = None

    @property
    def record(self) -> Record:
        """The record that was to be written."""
        assert self.data is not None
        return Record.model_validate_json(self.data)


@dataclass
class Pause:
    """A call that was stopped on its way. `reached` tells that it is there; `go` lets it on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Rule:
    """What befalls calls called `name` on a key that holds `key`: the `nth` such, or every one."""

    name: str
    key: str
    nth: int | None
    before: Callable[[], Awaitable[None]] | None = None
    after: Callable[[], Awaitable[None]] | None = None
    seen: int = 0

    def takes(self, call: Call) -> bool:
        if self.name not in ("", call.name) or self.key not in call.key:
            return False
        self.seen += 1
        return self.nth in (None, self.seen)


class FaultyStore:
    """A `Store` that does what `behind` does, unless a test has other plans."""

    def __init__(self, behind: Store) -> None:
        self._behind = behind
        self._rules: list[_Rule] = []
        self.url = behind.url
        self.calls: list[Call] = []
        #: The record writes that the store took, in order.
        self.stored: list[Record] = []
        #: While True every call fails, and nothing reaches the store.
        self.away = False
        #: Objects seem to have been written so much earlier: no test waits for a lease to expire.
        self.later_seconds = 0.0
        #: The store does not tell the time, so no age is known.
        self.timeless = False
        self._awake = asyncio.Event()
        self._awake.set()

    # ---- what a test may ask for

    def fail(self, name: str, key: str = "", *, nth: int | None = 1) -> None:
        """The `nth` such call fails and has no effect; None: every one."""
        self._rules.append(_Rule(name, key, nth, before=_unavailable))

    def refuse(self, name: str, key: str = "") -> None:
        """Every such call is refused for good, as by a policy of the bucket."""
        self._rules.append(_Rule(name, key, None, before=_misconfigured))

    def lose_answer(self, name: str, key: str = "", *, nth: int | None = 1) -> None:
        """The `nth` such call takes effect, but its caller hears that it may not have."""
        self._rules.append(_Rule(name, key, nth, after=_unavailable))

    def delay(self, name: str, key: str = "", *, seconds: float) -> None:
        """Every such call takes so much longer."""
        self._rules.append(_Rule(name, key, None, before=lambda: asyncio.sleep(seconds)))

    def pause_before(self, name: str, key: str = "", *, nth: int | None = 1) -> Pause:
        """Stop the `nth` such call on its way to the store."""
        pause = Pause()
        self._rules.append(_Rule(name, key, nth, before=lambda: _wait(pause)))
        return pause

    def pause_after(self, name: str, key: str = "", *, nth: int | None = 1) -> Pause:
        """Stop the answer of the `nth` such call on its way back."""
        pause = Pause()
        self._rules.append(_Rule(name, key, nth, after=lambda: _wait(pause)))
        return pause

    def heal(self) -> None:
        """No more of what was asked for: from now on calls fare well."""
        self._rules.clear()

    def freeze(self) -> None:
        """From now on no call goes out and no answer comes in, as if the worker were stopped."""
        self._awake.clear()

    def thaw(self) -> None:
        """What was stopped goes on: the calls go out now, the answers come in."""
        self._awake.set()

    def forget_calls(self) -> None:
        self.calls.clear()

    def asked(self, *names: str, key: str = "") -> list[Call]:
        """The calls so far that have one of these names and a key that holds `key`."""
        return [call for call in self.calls if call.name in names and key in call.key]

    # ---- what the worker sees

    @asynccontextmanager
    async def _on_its_way(self, name: str, key: str, data: bytes | None) -> AsyncIterator[None]:
        call = Call(name, key, data)
        self.calls.append(call)
        rules = [rule for rule in self._rules if rule.takes(call)]
        for rule in rules:
            if rule.before:
                await rule.before()
        await self._awake.wait()
        if self.away:
            await _unavailable()
        yield
        if name in ("create", "replace") and key.endswith("/record.json"):
            self.stored.append(call.record)
        for rule in rules:
            if rule.after:
                await rule.after()
        await self._awake.wait()
        if self.away:  # it went while this was answered
            await _unavailable()

    async def capabilities(self, *, fresh: bool = False) -> Any:
        return await self._behind.capabilities(fresh=fresh)

    async def get(self, key: str, **options: Any) -> Any:
        async with self._on_its_way("get", key, None):
            found = await self._behind.get(key, **options)
            age = None if self.timeless else found.age_seconds + self.later_seconds
            return found._replace(age_seconds=age)

    async def stat(self, key: str) -> Any:
        async with self._on_its_way("stat", key, None):
            return await self._behind.stat(key)

    async def get_range(self, key: str, **options: Any) -> Any:
        async with self._on_its_way("get_range", key, None):
            return await self._behind.get_range(key, **options)

    async def put(self, key: str, data: bytes, **options: Any) -> Any:
        async with self._on_its_way("put", key, data):
            return await self._behind.put(key, data, **options)

    async def create(self, key: str, data: bytes) -> Any:
        async with self._on_its_way("create", key, data):
            return await self._behind.create(key, data)

    async def replace(self, key: str, data: bytes, version: str) -> Any:
        async with self._on_its_way("replace", key, data):
            return await self._behind.replace(key, data, version)

    async def list(self, prefix: str, **options: Any) -> Any:
        async with self._on_its_way("list", prefix, None):
            return await self._behind.list(prefix, **options)

    async def list_folders(self, prefix: str, **options: Any) -> Any:
        async with self._on_its_way("list_folders", prefix, None):
            return await self._behind.list_folders(prefix, **options)

    async def delete(self, keys: Any) -> None:
        async with self._on_its_way("delete", "\n".join(keys), None):
            await self._behind.delete(keys)

    async def upload(self, file: Any, key: str, **options: Any) -> Any:
        async with self._on_its_way("upload", key, None):
            return await self._behind.upload(file, key, **options)

    async def upload_stream(self, chunks: Any, key: str, **options: Any) -> Any:
        async with closing(chunks), self._on_its_way("upload_stream", key, None):
            return await self._behind.upload_stream(chunks, key, **options)

    async def download(self, key: str, path: Any, **options: Any) -> Any:
        async with self._on_its_way("download", key, None):
            return await self._behind.download(key, path, **options)

    async def presign_get(self, key: str, **options: Any) -> Any:
        await self._can_presign()
        return await self._behind.presign_get(key, **options)

    async def presign_gets(self, wanted: Any, **options: Any) -> Any:
        await self._can_presign()
        return await self._behind.presign_gets(wanted, **options)

    async def presign_put(self, key: str, **options: Any) -> Any:
        await self._can_presign()
        return await self._behind.presign_put(key, **options)

    async def presign_parts(self, key: str, **options: Any) -> Any:
        async with self._on_its_way("presign_parts", key, None):
            return await self._behind.presign_parts(key, **options)

    async def join_parts(self, key: str, upload_id: str, **options: Any) -> None:
        async with self._on_its_way("join_parts", key, None):
            await self._behind.join_parts(key, upload_id, **options)

    async def _can_presign(self) -> None:
        """A worker that has never reached a bucket does not know what it can do."""
        if self.away:
            await _unavailable()

    async def check(self) -> Any:
        if self.away:
            return StoreHealth(False, "the test switched the store off", None, None)
        return await self._behind.check()

    async def close(self) -> None:
        """The store behind belongs to the test."""


async def _unavailable() -> None:
    raise StorageUnavailable("the test switched the store off")


async def _misconfigured() -> None:
    raise StorageMisconfigured("the test lets the store refuse this")


async def _wait(pause: Pause) -> None:
    pause.reached.set()
    await pause.go.wait()
