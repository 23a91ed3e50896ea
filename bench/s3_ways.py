"""Ways to move files to a bucket and back: this worker's, and what one would use instead."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from s3transfer.crt import (
    BotocoreCRTCredentialsWrapper,
    BotocoreCRTRequestSerializer,
    CRTTransferManager,
    S3ClientArgsCreator,
    create_s3_crt_client,
)
from s3transfer.utils import OSUtils

from attempts.fetching import FETCHES
from attempts.uploads import CONCURRENT_FILES
from stores.s3.store import S3Store
from tests.servers import S3Server, upload_file

REGION = "us-east-1"
#: More threads and larger parts than by default (10, 8 MiB).
PARTS = TransferConfig(max_concurrency=16, multipart_chunksize=16 << 20, io_chunksize=1 << 20)
THREADS = 16
#: Checksums in trailers, by default, are more than R2, GCS and Ceph over TLS take.
NO_TRAILERS = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


def _trusted(server: S3Server) -> str | None:
    """The certificate of a server that is reached over TLS."""
    return str(server.certificate) if server.endpoint_url.startswith("https:") else None


class Transfer(Protocol):
    """Blocking; to and from keys that begin with the prefix and end with the files' names."""

    note: str

    def up(self, files: list[Path], prefix: str) -> None: ...

    def down(self, names: list[str], prefix: str, folder: Path) -> None: ...


class OurStore:
    """This worker's."""

    note = (
        f"the worker's S3Store: {CONCURRENT_FILES} artifacts, {FETCHES} inputs at a time, as in "
        "uploads and inputs; hashes every byte with SHA-256 on its way, both ways"
    )

    def __init__(self, server: S3Server, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.store = S3Store(
            bucket=server.bucket,
            endpoint_url=server.endpoint_url,
            region=REGION,
            addressing_style="path",
            tls_bundle=_trusted(server),
            **server.keys._asdict(),
        )

    def up(self, files: list[Path], prefix: str) -> None:
        upload = partial(upload_file, self.store)
        self._run(CONCURRENT_FILES, [upload(file, f"{prefix}{file.name}") for file in files])

    def down(self, names: list[str], prefix: str, folder: Path) -> None:
        download = self.store.download
        self._run(FETCHES, [download(f"{prefix}{name}", folder / name) for name in names])

    def _run(self, at_once: int, transfers: Iterable[Coroutine[Any, Any, object]]) -> None:
        turn = asyncio.Semaphore(at_once)

        async def one(transfer: Coroutine[Any, Any, object]) -> None:
            async with turn:
                await transfer

        async def all_of_them() -> None:
            await asyncio.gather(*map(one, transfers))

        self._loop.run_until_complete(all_of_them())


class PlainBoto3:
    """As users write it."""

    note = (
        "boto3's `upload_file` and `download_file` with their defaults, one after the other; over "
        "TLS without checksums of its own, which this server refuses there"
    )

    def __init__(self, server: S3Server, **config: Any) -> None:
        self._bucket = server.bucket
        self._options: dict[str, Any] = {}
        if _trusted(server):
            config |= NO_TRAILERS
        self._s3 = boto3.client(
            "s3",
            endpoint_url=server.endpoint_url,
            region_name=REGION,
            aws_access_key_id=server.keys.access_key_id,
            aws_secret_access_key=server.keys.secret_access_key,
            verify=_trusted(server),
            config=Config(max_pool_connections=64, **config),
        )

    def up(self, files: list[Path], prefix: str) -> None:
        self._each([partial(self._up, file, f"{prefix}{file.name}") for file in files])

    def down(self, names: list[str], prefix: str, folder: Path) -> None:
        self._each([partial(self._down, f"{prefix}{name}", folder / name) for name in names])

    def _up(self, file: Path, key: str) -> None:
        self._s3.upload_file(str(file), self._bucket, key, **self._options)

    def _down(self, key: str, path: Path) -> None:
        self._s3.download_file(self._bucket, key, str(path), **self._options)

    def _each(self, calls: list[Callable[[], None]]) -> None:
        for call in calls:
            call()


class TunedBoto3(PlainBoto3):
    """As those write it who have measured."""

    note = (
        f"boto3 with TransferConfig({PARTS.max_concurrency} threads, parts of "
        f"{PARTS.multipart_chunksize >> 20} MiB) and no checksums of its own, "
        f"files in a pool of {THREADS} threads"
    )

    def __init__(self, server: S3Server) -> None:
        super().__init__(server, **NO_TRAILERS)
        self._options = {"Config": PARTS}

    def _each(self, calls: list[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(call) for call in calls]:
                done.result()


class _NoTrailers(S3ClientArgsCreator):
    def _get_make_request_args_put_object(self, **told: Any) -> dict[str, Any]:
        made: dict[str, Any] = super()._get_make_request_args_put_object(**told)
        return made | {"checksum_config": None}


class Crt:
    """AWS' own client in C, which boto3 and the AWS CLI can use."""

    note = (
        "awscrt by s3transfer's CRTTransferManager, all files at once. By "
        "TransferConfig(preferred_transfer_client='crt') boto3 uses it for AWS itself alone: it "
        "drops the client's endpoint_url and wants TLS. Without its trailing checksums, which this "
        "server refuses, and with unsigned bodies, its default: over plain HTTP boto3 and the "
        "worker sign theirs, which both ends then hash"
    )

    def __init__(self, server: S3Server) -> None:
        session = botocore.session.Session()
        session.set_credentials(*server.keys)
        keys = BotocoreCRTCredentialsWrapper(session.get_credentials())
        self._bucket = server.bucket
        place = {"region_name": REGION, "endpoint_url": server.endpoint_url}
        self._requests = BotocoreCRTRequestSerializer(session, place)
        provider = keys.to_crt_credentials_provider()
        trusted = _trusted(server)
        self._client = create_s3_crt_client(
            REGION, provider, use_ssl=trusted is not None, verify=trusted
        )

    def up(self, files: list[Path], prefix: str) -> None:
        with self._manager() as manager:
            for file in files:
                manager.upload(str(file), self._bucket, f"{prefix}{file.name}")

    def down(self, names: list[str], prefix: str, folder: Path) -> None:
        with self._manager() as manager:
            for name in names:
                manager.download(self._bucket, f"{prefix}{name}", str(folder / name))

    def _manager(self) -> CRTTransferManager:
        """At its end all have their names; as boto3 does, one for each use."""
        manager = CRTTransferManager(self._client, self._requests)
        manager._s3_args_creator = _NoTrailers(self._requests, OSUtils())
        return manager


class S5cmd:
    """A program in Go."""

    note = "s5cmd 2.3 with its defaults; the start of the program is part of it"

    def __init__(self, server: S3Server) -> None:
        self._bucket = server.bucket
        self._program = str(Path(sys.executable).with_name("s5cmd"))
        self._env = os.environ | {
            "AWS_ACCESS_KEY_ID": server.keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.keys.secret_access_key,
            "AWS_REGION": REGION,
            "S3_ENDPOINT_URL": server.endpoint_url,
        }
        if trusted := _trusted(server):
            self._env["AWS_CA_BUNDLE"] = trusted

    def up(self, files: list[Path], prefix: str) -> None:
        source = files[0] if len(files) == 1 else f"{files[0].parent}/*"
        self._copy(str(source), f"s3://{self._bucket}/{prefix}")

    def down(self, names: list[str], prefix: str, folder: Path) -> None:
        which = names[0] if len(names) == 1 else "*"
        self._copy(f"s3://{self._bucket}/{prefix}{which}", f"{folder}/")

    def _copy(self, source: str, target: str) -> None:
        command = [self._program, "--log", "error", "cp", source, target]
        subprocess.run(command, env=self._env, check=True)
