"""One large archive, run as `python -m tests.big_archive PLACE FOLDER BYTES`.

A process of its own, so that its memory is its own. Five files of BYTES each are archived by a
worker. Prints `{"status", "result", "size", "extra_bytes"}` as JSON: how it ended, the size of the
zip, and the most memory it took beyond the start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx

from records.manifest import artifact_key
from records.record import ArtifactFile, Record, Writer, new_record
from tests import servers
from tests.big_transfer import memory
from tests.kit import Caller
from utils import utc_now

if TYPE_CHECKING:
    from storage import Store
    from tests.servers import Place

FILES = 5


async def put_large_files(store: Store, folder: Path, size: int) -> tuple[ArtifactFile, ...]:
    """Zeros, which cost no disk where a store is a folder."""
    digest, block = hashlib.sha256(), bytes(1 << 20)
    for offset in range(0, size, len(block)):
        digest.update(block[: size - offset])
    source = folder / "zeros"
    source.touch()
    files = []
    for number in range(FILES):
        key = artifact_key("large", 1, f"{number}.bin")
        if store.url.startswith("file:"):
            target = Path(unquote(urlsplit(store.url).path)) / key
            target.parent.mkdir(parents=True, exist_ok=True)
        else:
            target = source
        with target.open("wb") as file:
            file.truncate(size)
        if target is source:
            await servers.upload_file(store, source, key)
        files.append(
            ArtifactFile(path=f"{number}.bin", size=size, sha256=digest.hexdigest(), attempt=1)
        )
    return tuple(files)


def completed(files: tuple[ArtifactFile, ...]) -> Record:
    """The record of a process that made them."""
    record = new_record(
        process_id="large",
        kind="sleep",
        params={},
        request_hash="",
        writer=Writer(worker_id="w", nonce="n"),
        now=utc_now(),
    )
    return record.with_files(files).running(utc_now()).completed(utc_now(), None)


def size_of(url: str) -> int:
    """Of what a link leads to. Of a zip on this disk, every entry is looked at too."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return int(
            httpx.get(url, headers={"Range": "bytes=0-0"}).headers["content-range"].split("/")[1]
        )
    path = Path(unquote(parts.path))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == FILES
        with archive.open(archive.infolist()[-1]) as last:
            assert last.read(1 << 20) == bytes(1 << 20)
    return path.stat().st_size


async def main(place: Place, folder: Path, size: int) -> None:
    store = servers.open_place(place)
    caller = Caller(store, folder, heartbeat_seconds=10, lease_seconds=100)
    try:
        files = await put_large_files(store, folder, size)
        await store.create("processes/large/record.json", completed(files).encode())
        await caller.start("small", artifacts=1)
        await caller("bulk_download", archive=True, process_ids=["small"])  # imports, connections
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        reply = await caller("bulk_download", archive=True, process_id="zip", process_ids=["large"])
        extra = memory("VmHWM") - before
        told = {name: reply[name] for name in ("status", "result")}
        told |= {"size": size_of(reply["files"][0]["url"]), "extra_bytes": extra}
        for name in ("large", "zip"):
            await caller("delete", process_id=name, confirm=name)
    finally:
        await store.close()
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
