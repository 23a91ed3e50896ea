"""The stores that tests run against, and how to reach them from this process or another one.

A `Place` says where a store is. It is a dictionary of strings, so that it can be handed to another
process as JSON: `{"root": ...}` for a folder, else the arguments of `S3Store`.

`TEST_S3_URL` names a bucket to run the contract against, beside the servers started here:

    s3://ACCESS_KEY:SECRET_KEY@HOST:PORT/BUCKET?region=us-east-1&tls=0&style=path

`%`-escape a `/` or `+` in a key. Without a host it is AWS. tls is 1 unless told, region us-east-1,
style path. All that is written lies under a fresh prefix and is removed after each test.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
from botocore.config import Config

from stores.local.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from storage import FileFacts, Store
    from worker.meter import Meter

Place = dict[str, str | None]

TEST_S3_URL = os.environ.get("TEST_S3_URL", "")
S3_STORES = ["moto", "ceph", *(["url"] if TEST_S3_URL else [])]
STORES = ["local", *S3_STORES]
on_local = pytest.mark.parametrize("place", ["local"], indirect=True)
#: With links to write, which moto and Ceph RGW as it is lack: both heed unsigned headers.
LINK_STORES = ["strict", *(["url"] if TEST_S3_URL else [])]
on_strict = pytest.mark.parametrize("place", ["strict"], indirect=True)
on_ceph = pytest.mark.parametrize("place", ["ceph"], indirect=True)
on_both_stores = pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)
SCRIPT = Path(__file__).parent.parent / "scripts" / "ceph-rgw.sh"


class Keys(NamedTuple):
    """What a user signs with."""

    access_key_id: str
    secret_access_key: str


class S3Server(NamedTuple):
    """An S3 server on this machine, with an empty bucket."""

    endpoint_url: str
    keys: Keys
    bucket: str
    #: A second user, who may not touch the bucket; None where nobody looks at keys.
    other: Keys | None = None
    #: The same server over TLS, and its self-signed certificate; None where there is none.
    tls_url: str | None = None
    certificate: Path | None = None

    def place(self) -> Place:
        """A fresh prefix in the bucket."""
        return {
            "bucket": self.bucket,
            "prefix": fresh_prefix(),
            "endpoint_url": self.endpoint_url,
            "region": "us-east-1",
            **self.keys._asdict(),
            "addressing_style": "path",
        }


def open_place(place: Place, meter: Meter | None = None) -> Store:
    """The store there; `meter` counts what it is asked."""
    if root := place.get("root"):
        return LocalStore(Path(root), meter)
    from stores.s3.store import S3Store

    return S3Store(**place, meter=meter)  # type: ignore[arg-type]  # only what is optional is None


async def keys_of(store: Store, prefix: str = "", *, limit: int = 1000) -> list[str]:
    """All keys, page by page."""
    keys, after = [], None
    while True:
        page = await store.list(prefix, start_after=after, limit=limit)
        assert len(page.objects) <= limit
        keys += [row.key for row in page.objects]
        if page.next is None:
            return keys
        after = page.next


async def upload_file(store: Store, path: Path, key: str, **options: Any) -> FileFacts:
    """`Store.upload` of the file at `path`."""
    with path.open("rb") as file:
        return await store.upload(file, key, **options)


def fresh_prefix() -> str:
    """One that no other test uses."""
    return f"test-{secrets.token_hex(6)}"


def place_from_url(url: str) -> Place:
    """A fresh prefix in the bucket that `TEST_S3_URL` names."""
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    scheme = "http" if options.get("tls") == "0" else "https"
    return {
        "bucket": parts.path.strip("/"),
        "prefix": fresh_prefix(),
        "endpoint_url": f"{scheme}://{parts.netloc.rpartition('@')[2]}" if parts.hostname else None,
        "region": options.get("region", "us-east-1"),
        "access_key_id": unquote(parts.username or ""),
        "secret_access_key": unquote(parts.password or ""),
        "addressing_style": options.get("style", "path"),
    }


@contextmanager
def run_moto() -> Iterator[S3Server]:
    """moto: quick, but not atomic, and it checks neither signatures nor expiry."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield _with_bucket(f"http://{host}:{port}", Keys("moto", "moto"))
    finally:
        server.stop()


@contextmanager
def run_ceph() -> Iterator[S3Server]:
    """Ceph RGW: a real server. It ends when the pipe closes, so even when we are killed.

    Skips the test that asks for it where it cannot be started; fails it when `CI=true`.
    """
    port = _free_ports(22)
    process = subprocess.Popen(
        [SCRIPT, "run", str(port), str(port + 21)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; it gets to know by the pipe
    )
    with process, ExitStack() as at_the_end:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        at_the_end.callback(process.stdin.close)
        lines = [_fields(process.stdout.readline()) for _ in range(3)]
        if not all(lines):
            missing(f"Ceph RGW did not start: {process.stderr.read()}")
        server, other, tls = lines
        yield _with_bucket(
            server["endpoint"],
            Keys(server["access_key"], server["secret_key"]),
            Keys(other["access_key"], other["secret_key"]),
            tls["endpoint"],
            Path(tls["certificate"]),
        )


def _with_bucket(
    url: str,
    keys: Keys,
    other: Keys | None = None,
    tls_url: str | None = None,
    certificate: Path | None = None,
) -> S3Server:
    bucket = f"bucket-{secrets.token_hex(6)}"
    with closing(client(url, keys)) as s3:
        s3.create_bucket(Bucket=bucket)
    return S3Server(url, keys, bucket, other, tls_url, certificate)


def client(url: str, keys: Keys) -> S3Client:
    """boto3 itself, for what a `Store` cannot do. Close it."""
    s3: S3Client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    return s3


def _fields(line: str) -> dict[str, str]:
    """`a=1 b=2` as a dictionary."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def missing(why: str) -> NoReturn:
    """Skip the test that asks for what this machine lacks; fail it when `CI=true`."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def _free_ports(count: int) -> int:
    """The first of that many free ports in a row, below those the kernel hands out itself."""
    # Tests that run side by side (pytest-xdist) look in stretches of their own.
    stretch = 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 15)
    while True:
        first = 15_000 + stretch + random.randrange(1_000 - count)  # noqa: S311
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
