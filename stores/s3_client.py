"""Where the bucket is, and boto3 set up so that every store of the S3 kind can live with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit, urlunsplit

from boto3.session import Session
from botocore.config import Config

from storage import StorageMisconfigured
from stores.s3_errors import BOTO_ERRORS, Place, translate
from stores.s3_headers import parse_time
from stores.s3_metering import count_requests

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from worker.meter import Meter

#: More than all threads that share a client, so that none waits for a connection.
CONNECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class S3Config:
    """Where the bucket is and how to talk to it. None leaves it to boto3's own chain (`AWS_*`)."""

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    addressing_style: str = "auto"
    #: A file of certificates to trust instead of the usual ones.
    tls_bundle: str | None = None
    #: Seconds. A worker's lease hangs on control requests, so they give up early.
    connect_timeout: float = 3.0
    read_timeout: float = 5.0
    #: Seconds without a byte before a file's request is given up.
    transfer_timeout: float = 30.0

    @property
    def place(self) -> Place:
        """For sentences."""
        return Place(self.bucket, _without_login(self.endpoint_url), self.region)


def new_session(config: S3Config) -> Session:
    """What clients are made from: the first takes 0.1 s, others from the same session take 5 ms.

    It has the credentials. Without keys of its own it looks for some where boto3 always does.
    """
    session = Session(
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
        aws_session_token=config.session_token if config.access_key_id else None,
    )
    # dateutil, botocore's way, takes more than half of the time that a list of 1000 keys takes here
    parsers = session._session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=parse_time)
    return session


def new_client(session: Session, config: S3Config, read_timeout: float, meter: Meter) -> S3Client:
    """Settings that every store of the S3 kind can live with; `meter` counts its requests."""
    endpoint, style = _endpoint(config)
    make = partial(
        session.client,
        "s3",
        endpoint_url=endpoint,
        region_name=config.region or ("us-east-1" if endpoint else None),
        verify=config.tls_bundle,
        config=Config(
            signature_version="s3v4",
            # newer defaults send checksums that R2, GCS and Ceph over TLS refuse
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": cast("Any", style)},
            connect_timeout=config.connect_timeout,
            read_timeout=read_timeout,
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
            # a conditional PUT that boto3 repeats gets 412 from its own success
            retries={"total_max_attempts": 1},
        ),
    )
    try:
        client = cast("S3Client", make())
    except BOTO_ERRORS as error:
        raise translate(error, config.place) from error
    count_requests(client, meter)
    return client


def _endpoint(config: S3Config) -> tuple[str | None, str]:
    """The endpoint and the addressing style.

    RunPod's BUCKET_ENDPOINT_URL often names the bucket already (`https://bucket.nyc3.example`);
    boto3 would put it there once more.
    """
    if config.endpoint_url is None:
        return None, config.addressing_style
    parts = urlsplit(config.endpoint_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StorageMisconfigured("S3_ENDPOINT_URL is of the form https://host[:port]")
    if parts.hostname.startswith(f"{config.bucket}."):
        host = parts.netloc.replace(f"{config.bucket}.", "", 1)
        return urlunsplit((parts.scheme, host, "", "", "")), "virtual"
    return config.endpoint_url.rstrip("/"), config.addressing_style


def _without_login(url: str | None) -> str | None:
    """`url` without what may be secret in it."""
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
