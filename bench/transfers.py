"""5. Files on one Ceph RGW.

One large file and many small ones, up and down, by this worker's store and by what one would use
instead, in turn: over TLS, as buckets are reached, and (not with `--quick`) over plain HTTP. The
server keeps its objects in memory and takes its share of the same cores.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bench.ceph import section_ceph
from bench.figures import Figure, Goal, median, ratio
from bench.in_turn import bar
from bench.s3_ways import Crt, OurStore, PlainBoto3, S5cmd, Transfer, TunedBoto3
from tests.servers import S3Server, client

GOAL = Goal(">=", 0.9)
OURS = "worker"
BLOCK = 1 << 20
SHARED = "the server, in memory, shares the cores"


class Load(NamedTuple):
    """Files to move."""

    name: str
    count: int
    size: int


FULL = Load("1 GB", 1, 10**9), Load("1000 x 64 KB", 1000, 64 << 10)
WARM_UPS = Load("warm-up", 20, 64 << 10), Load("warm-up in parts", 1, 32 << 20)
QUICK = Load("64 MB", 1, 64 * 10**6), Load("50 x 64 KB", 50, 64 << 10)


class Cost(NamedTuple):
    """What one transfer took, in seconds."""

    wall: float
    #: Of the client and its children, user and system.
    cpu: float


#: By what was moved (`1 GB up over TLS`) and how: one a round.
Costs = dict[tuple[str, str], list[Cost]]


def run(quick: bool) -> list[Figure]:
    """Seconds, CPU seconds and the ratio of our rate to the best of the others."""
    loads = QUICK if quick else FULL
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(section_ceph())
        assert server.tls_url is not None
        ways = {
            wire: stack.enter_context(_all_ways(server._replace(endpoint_url=url)))
            for wire, url in (("over TLS", server.tls_url), ("over HTTP", server.endpoint_url))
            if not (quick and wire == "over HTTP")
        }
        bench = _Bench(server, ways, folder)
        for load, wire in product(WARM_UPS, ways):  # the first use of everything
            bench.round(load, wire, backwards=False)
        bench.costs.clear()
        bench.hashing.clear()
        rounds = 1 if quick else 3
        with bar(rounds * len(loads) * len(ways), "rounds of transfers") as shown:
            for number in range(rounds):
                for load, wire in product(loads, ways):
                    bench.round(load, wire, backwards=bool(number % 2))
                    shown.update()
    return [
        figure
        for wire in ways
        for load in loads
        for way in ("up", "down")
        for figure in _figures(load, way, wire, bench)
    ]


@contextmanager
def _all_ways(server: S3Server) -> Iterator[dict[str, Transfer]]:
    loop = asyncio.new_event_loop()
    ours = OurStore(server, loop)
    try:
        yield {
            OURS: ours,
            "boto3": PlainBoto3(server),
            "boto3, tuned": TunedBoto3(server),
            "CRT": Crt(server),
            "s5cmd": S5cmd(server),
        }
    finally:
        loop.run_until_complete(ours.store.close())
        loop.close()


class _Bench:
    """Moves files, and looks whether they arrived."""

    def __init__(
        self, server: S3Server, ways: dict[str, dict[str, Transfer]], folder: Path
    ) -> None:
        self.ways = ways
        self.costs: Costs = {}
        #: Seconds of SHA-256 over all files, by their load, wire and way: one a round.
        self.hashing: dict[tuple[str, str, str], list[float]] = {}
        self._s3 = client(server.endpoint_url, server.keys)
        self._bucket = server.bucket
        self._folder = folder
        self._filling = os.urandom(BLOCK)
        self._sources: dict[Load, Path] = {}
        self._digests: dict[Load, str] = {}

    def round(self, load: Load, wire: str, *, backwards: bool) -> None:
        """Up and down, each way in turn."""
        for name in list(self.ways[wire])[:: -1 if backwards else 1]:
            target = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                self._there_and_back(load, wire, name, target)
            finally:
                if load.count == 1:  # ext4 is slow to make a file after many were removed
                    shutil.rmtree(target)
                self._clear(f"{load.name}/")

    def _there_and_back(self, load: Load, wire: str, name: str, target: Path) -> None:
        source, way, prefix = self._source(load), self.ways[wire][name], f"{load.name}/"
        files = sorted(source.iterdir())
        self._touch_memory(load)
        self._measure(f"{load.name} up {wire}", name, partial(way.up, files, prefix))
        sizes = [row["Size"] for row in self._rows(prefix)]
        assert sizes == [load.size] * load.count, f"{name}: {len(sizes)} objects"
        names = [file.name for file in files]
        self._touch_memory(load)
        self._measure(f"{load.name} down {wire}", name, partial(way.down, names, prefix, target))
        began = time.perf_counter()
        assert _digest(target) == self._digests[load], f"{name}: other bytes came back"
        self.hashing.setdefault((load.name, wire, name), []).append(time.perf_counter() - began)

    def _measure(self, what: str, name: str, move: Callable[[], None]) -> None:
        before = _cpu()
        began = time.perf_counter()
        move()
        wall = time.perf_counter() - began
        self.costs.setdefault((what, name), []).append(Cost(wall, _cpu() - before))

    def _touch_memory(self, load: Load) -> None:
        """As much as a transfer fills, and give it back: in a virtual machine, whoever is the first
        to use some for a while waits for the host, up to 2 s a gigabyte, and it was always another.
        """
        path = self._folder / "touched"
        with path.open("wb") as file:
            for _ in range(load.count * load.size // BLOCK):
                file.write(self._filling)
        path.unlink()

    def _source(self, load: Load) -> Path:
        """A folder of such files, made once."""
        if load not in self._sources:
            folder = self._sources[load] = self._folder / load.name
            folder.mkdir()
            for number in range(load.count):
                with (folder / f"{number:04d}.bin").open("wb") as file:
                    for block in range(-(-load.size // BLOCK)):
                        own = b"%08d %08d" % (number, block) + self._filling[17:]
                        file.write(own[: load.size - block * BLOCK])
            self._digests[load] = _digest(folder)
        return self._sources[load]

    def _rows(self, prefix: str) -> list[Any]:
        return self._s3.list_objects_v2(Bucket=self._bucket, Prefix=prefix).get("Contents", [])

    def _clear(self, prefix: str) -> None:
        """The server keeps objects in memory."""
        keys = [{"Key": row["Key"]} for row in self._rows(prefix)]
        if keys:
            self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})


def _digest(folder: Path) -> str:
    """Of all files: their names and their bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _cpu() -> float:
    """Seconds of this process, and of its children that have ended."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in both)


def _figures(load: Load, direction: str, wire: str, bench: _Bench) -> list[Figure]:
    what, ways = f"{load.name} {direction} {wire}", bench.ways[wire]
    figures = []
    walls = {name: [cost.wall for cost in bench.costs[what, name]] for name in ways}
    for name, way in ways.items():
        cpu = [cost.cpu for cost in bench.costs[what, name]]
        figures += [
            median(f"{what}, {name}", walls[name], "s", note=f"{way.note}; {SHARED}"),
            median(f"{what}, {name}, CPU of the client", cpu, "CPU s"),
        ]
    best = min((name for name in walls if name != OURS), key=lambda n: statistics.median(walls[n]))
    # Seconds of theirs by seconds of ours: our rate by theirs.
    beside = ratio(
        f"{what}, rate to the best of the others",
        walls[best],
        walls[OURS],
        goal=GOAL,
        note=f"the best was {best}",
    )
    hashed = [
        cost + hashing
        for cost, hashing in zip(walls[best], bench.hashing[load.name, wire, best], strict=True)
    ]
    alike = ratio(
        f"{what}, rate to the best of the others that hashes too",
        hashed,
        walls[OURS],
        note=f"{best}, and then SHA-256 of its files by one thread: `artifacts` and inputs promise "
        "one of each file",
    )
    return [*figures, beside, alike]
