"""Where the time of one small request to a bucket goes: why many small files take what they take.

    python -m bench.request_profile

One thread, one connection, Ceph RGW on this machine; client and wire are set up as the worker's.
"""

from __future__ import annotations

import cProfile
import hashlib
import os
import pstats
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from meter import Meter
from stores.s3_client import S3Config, new_client, new_session
from stores.s3_files import Body, Stop
from stores.s3_wire import Wire
from tests.servers import run_ceph

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

SIZE, TIMES, WARM_UP = 64 << 10, 500, 50


def main() -> None:
    with run_ceph() as server:
        config = S3Config(
            bucket=server.bucket, endpoint_url=server.endpoint_url, region="us-east-1",
            addressing_style="path", **cast("Any", server.keys._asdict()),
        )  # fmt: skip
        session = new_session(config)
        with closing(new_client(session, config, 30.0, Meter())) as client:
            wire = Wire(client, session.get_credentials(), server.bucket)
            for name, request in _requests(client, wire, server.bucket).items():
                _tell(name, request)


def _requests(client: S3Client, wire: Wire, bucket: str) -> dict[str, Callable[[], Any]]:
    data, stop = os.urandom(SIZE), Stop()
    sha256 = hashlib.sha256(data).hexdigest()
    return {
        "PUT by boto3's client": lambda: client.put_object(Bucket=bucket, Key="k", Body=data),
        "PUT by the wire, as files": lambda: wire.put(
            "PutObject", "k", Body(memoryview(data), stop), sha256=sha256
        ),
        "GET by boto3's client": lambda: _read(client.get_object(Bucket=bucket, Key="k")["Body"]),
        "GET by the wire, as files": lambda: wire.read("k", {}),
    }


def _read(body: StreamingBody) -> bytes:
    data: bytes = body.read()
    return data


def _tell(name: str, request: Callable[[], Any]) -> None:
    _repeat(request, WARM_UP)
    cpu, wall = time.thread_time(), time.perf_counter()
    _repeat(request, TIMES)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    print(f"{name}, {SIZE >> 10} KB: {1000 * cpu / TIMES:.2f} ms of CPU, "
          f"{1000 * wall / TIMES:.2f} ms in all; of the profiled time:")  # fmt: skip
    for share, whose in _shares(request):
        print(f"  {share:4.0%}  {whose}")


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
        if "Curl" in function:
            return "libcurl"
        return "sockets" if "socket" in function or "poll" in function else "Python's own, in C"
    path = PurePath(file)
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    return "the standard library"


if __name__ == "__main__":
    main()
