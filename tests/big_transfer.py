"""One large file up and down, run as `python -m tests.big_transfer PLACE FOLDER`.

A process of its own, so that its memory is its own. Prints `{"sizes", "digests", "extra_bytes"}` as
JSON: the file's, the upload's and the download's; and the most memory it took beyond the start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests import servers

if TYPE_CHECKING:
    from tests.servers import Place

SIZE = 2 * 10**9
BLOCK = 1 << 20


def write_large_file(path: Path) -> str:
    """Every block differs from every other, so that none can be mistaken. Returns the SHA-256."""
    digest, filling = hashlib.sha256(), os.urandom(BLOCK)
    with path.open("wb") as file:
        for number in range(-(-SIZE // BLOCK)):
            block = (b"%016d" % number + filling[16:])[: SIZE - number * BLOCK]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def memory(name: str) -> int:
    """Of this process, in bytes: `VmRSS` now, `VmHWM` at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


async def main(place: Place, folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    digest = write_large_file(source)
    store = servers.open_place(place)
    await store.put("warm-up", b"")  # imports and connections are not the transfer's
    before = memory("VmRSS")
    try:
        up = await servers.upload_file(store, source, "large", on_bytes=lambda _: None)
        source.unlink()
        down = await store.download("large", target, expected=up)
    finally:
        await store.delete(["large", "warm-up"])
        await store.close()
    extra = memory("VmHWM") - before
    with target.open("rb") as file:
        again = hashlib.file_digest(file, "sha256").hexdigest()
    sizes = [SIZE, up.size, down.size, target.stat().st_size]
    digests = [digest, up.sha256, down.sha256, again]
    target.unlink()
    print(json.dumps({"sizes": sizes, "digests": digests, "extra_bytes": extra}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
