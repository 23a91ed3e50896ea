"""One long stream up, run as `python -m tests.big_stream PLACE`.

A process of its own, so that its memory is its own. Prints `{"sizes", "digests", "extra_bytes"}` as
JSON: the stream's, the upload's and the object's; and the most memory it took beyond the start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING

from storage import MAX_RANGE
from tests import servers
from tests.big_transfer import memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage import Store
    from tests.servers import Place

SIZE = 200 * 10**6
BLOCK = 1 << 20


async def made(digest: hashlib._Hash) -> AsyncIterator[bytes]:
    """Every block differs from every other, so that none can be mistaken."""
    filling = os.urandom(BLOCK)
    for start in range(0, SIZE, BLOCK):
        block = (b"%016d" % start + filling[16:])[: SIZE - start]
        digest.update(block)
        yield block


async def one(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


async def read_back(store: Store) -> str:
    """The SHA-256 of what lies there, range by range."""
    digest, offset = hashlib.sha256(), 0
    while data := await store.get_range("long", offset=offset, length=MAX_RANGE):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()


async def main(place: Place) -> None:
    store = servers.open_place(place)
    # imports and connections are not the stream's
    await store.upload_stream(one(bytes(9 * BLOCK)), "warm-up", size=9 * BLOCK)
    before = memory("VmRSS")
    digest = hashlib.sha256()
    try:
        up = await store.upload_stream(made(digest), "long", size=2 * SIZE)
        extra = memory("VmHWM") - before
        there = await store.stat("long")
        again = await read_back(store)
    finally:
        await store.delete(["long", "warm-up"])
        await store.close()
    sizes = [SIZE, up.size, there.size]
    digests = [digest.hexdigest(), up.sha256, again]
    print(json.dumps({"sizes": sizes, "digests": digests, "extra_bytes": extra}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
