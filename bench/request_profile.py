"""Where the time of one small request to a bucket goes: why many small files take what they take.

    python -m bench.request_profile

One thread, one connection, Ceph RGW on this machine; the client is set up as the worker's is.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import PurePath
from typing import Any, cast

from meter import Meter
from stores.s3_client import S3Config, new_client, new_session
from tests.servers import S3Server, run_ceph

SIZE, TIMES, WARM_UP = 64 << 10, 500, 50


def main() -> None:
    with run_ceph() as server, closing(_client(server)) as s3:
        body = os.urandom(SIZE)

        def put() -> None:
            s3.put_object(Bucket=server.bucket, Key="k", Body=body)

        def get() -> None:
            s3.get_object(Bucket=server.bucket, Key="k")["Body"].read()

        for name, request in (("PUT", put), ("GET", get)):
            _repeat(request, WARM_UP)
            cpu, wall = time.thread_time(), time.perf_counter()
            _repeat(request, TIMES)
            cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
            print(f"{name} of {SIZE >> 10} KB: {1000 * cpu / TIMES:.2f} ms of CPU, "
                  f"{1000 * wall / TIMES:.2f} ms in all; of the profiled time:")  # fmt: skip
            for share, whose in _shares(request):
                print(f"  {share:4.0%}  {whose}")


def _client(server: S3Server) -> Any:
    config = S3Config(
        bucket=server.bucket, endpoint_url=server.endpoint_url, region="us-east-1",
        addressing_style="path", **cast("Any", server.keys._asdict()),
    )  # fmt: skip
    return new_client(new_session(config), config, 30.0, Meter())


def _repeat(request: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        request()


def _shares(request: Callable[[], Any]) -> list[tuple[float, str]]:
    """By package, the largest first: time in its own functions, waits for the server included."""
    profile = cProfile.Profile()
    profile.runcall(_repeat, request, TIMES)
    spent: Counter[str] = Counter()
    for (file, _, function), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        spent[_whose(file, function)] += row[2]
    whole = spent.total()
    return [(time_ / whole, name) for name, time_ in spent.most_common(6)]


def _whose(file: str, function: str) -> str:
    if file == "~":
        return "sockets" if "socket" in function or "poll" in function else "Python's own, in C"
    path = PurePath(file)
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    return "the standard library"


if __name__ == "__main__":
    main()
