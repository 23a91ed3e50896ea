"""Sets up boto3 and the signed calls so that every store of the S3 kind can live with them."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import botocore.session
import certifi
import urllib3
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import NoCredentialsError, UnknownSignatureVersionError
from urllib3.connection import HTTPConnection

from storage import InvalidKey, StorageMisconfigured, check_key
from stores.s3.errors import BOTO_ERRORS, BucketPlace, translate
from stores.s3.metering import RequestCounter
from stores.s3.signed_calls import Destination, SignedCalls
from stores.s3.stopping import StoppableHTTP, StoppableHTTPS
from utils import read_time

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client

    from worker.meter import Meter
    from worker.settings import Settings

#: More than all threads that share a client, so that none waits for a connection.
CONNECTIONS = 64
#: S3's own limit on a key, of which the prefix may take what `check_key` leaves.
MAX_PREFIX_BYTES = 1024 - 900
_KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


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

    def __post_init__(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise StorageMisconfigured(
                "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY go together: set both or none"
            )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The bucket that the environment names."""
        if settings.bucket is None:
            raise StorageMisconfigured("no bucket is named: set S3_BUCKET")
        return cls(
            bucket=settings.bucket,
            endpoint_url=settings.endpoint_url,
            region=settings.region,
            access_key_id=settings.access_key_id,
            secret_access_key=_revealed(settings.secret_access_key),
            session_token=_revealed(settings.session_token),
            addressing_style=settings.addressing_style,
            tls_bundle=settings.tls_bundle,
            connect_timeout=settings.s3_connect_timeout,
            read_timeout=settings.s3_read_timeout,
            transfer_timeout=settings.s3_transfer_timeout,
        )

    @property
    def place(self) -> BucketPlace:
        """For sentences."""
        return BucketPlace(self.bucket, _without_login(self.endpoint_url), self.region)


class Client(NamedTuple):
    """Two ways to one bucket that wait for an answer equally long."""

    boto3: S3Client
    signed: SignedCalls

    def close(self) -> None:
        self.boto3.close()
        self.signed.close()


class Clients:
    """The clients of one bucket, one for each time of silence. Thread-safe."""

    def __init__(self, config: S3Config, meter: Meter) -> None:
        self._config = config
        self._counter = RequestCounter(meter)
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._trusted: str | None = None
        self._clients: dict[float, Client] = {}

    def waiting(self, read_timeout: float) -> Client:
        """The client, made at the first use: that takes 0.1 s, so never call it on the loop.

        Raises:
            NoCredentialsError: there are none; the next call looks again.
            StorageMisconfigured: the settings cannot work.
        """
        with self._lock:
            if read_timeout not in self._clients:
                self._clients[read_timeout] = self._made(read_timeout)
            return self._clients[read_timeout]

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _made(self, read_timeout: float) -> Client:
        if self._session is None:
            self._session, self._trusted = _new_session(self._config)
        credentials = self._session.get_credentials()
        if credentials is None:
            self._session = None
            raise NoCredentialsError
        client = _new_client(self._session, self._config, read_timeout, self._trusted)
        destination = _destination(client, self._config.bucket)
        self._counter.watch(client)
        timeout = urllib3.Timeout(connect=self._config.connect_timeout, read=read_timeout)
        pool = _open_pool(destination.url, self._trusted)
        return Client(client, SignedCalls(destination, credentials, pool, timeout, self._counter))


def _new_session(config: S3Config) -> tuple[Session, str | None]:
    """A session, and the file of certificates that its settings say to trust.

    The first client of a session takes 0.1 s, each further one 5 ms. Without keys of its own the
    session looks for credentials where boto3 always does.
    """
    core = botocore.session.get_session()
    # A time that cannot be read fails no request: `headers` reads those that matter. And dateutil,
    # botocore's way, takes longer than the rest of an answer.
    parsers = core.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=read_time)
    session = Session(
        botocore_session=core,
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
        aws_session_token=config.session_token if config.access_key_id else None,
    )
    usual = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    return session, config.tls_bundle or usual


def _new_client(
    session: Session, config: S3Config, read_timeout: float, trusted: str | None
) -> S3Client:
    endpoint, style = _endpoint(config)
    make = partial(
        session.client,
        "s3",
        endpoint_url=endpoint,
        region_name=config.region or ("us-east-1" if endpoint else None),
        verify=trusted,
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
        return cast("S3Client", make())
    except BOTO_ERRORS as error:
        raise translate(error, config.place) from error


class _NotSent(Exception):
    """Raised in place of sending a request."""

    def __init__(self, request: AWSPreparedRequest) -> None:
        self.url = str(request.url)
        #: `KEY/DATE/REGION/SERVICE/aws4_request`, if it is signed by version 4.
        self.scope = str(request.headers["Authorization"]).partition("Credential=")[2]


def _destination(client: S3Client, bucket: str) -> Destination:
    """Where boto3 would send a request about the bucket. Sends none.

    Raises:
        UnknownSignatureVersionError: the bucket is of a kind that takes other signatures.
    """

    def do_not_send(request: AWSPreparedRequest, **_: object) -> None:
        raise _NotSent(request)

    client.meta.events.register("before-send.s3.GetObject", do_not_send)
    try:
        client.get_object(Bucket=bucket, Key="k")
    except _NotSent as instead:
        found = instead
    finally:
        client.meta.events.unregister("before-send.s3.GetObject", do_not_send)
    *_, region, service, _ = f"///{found.scope.partition(',')[0]}".split("/")
    if service != "s3":
        raise UnknownSignatureVersionError(signature_version=service)
    parts = urlsplit(found.url)
    host = parts.netloc.rpartition("@")[2].lower()  # as it is signed
    return Destination(f"{parts.scheme}://{host}{parts.path.removesuffix('k')}", region)


def _open_pool(url: str, trusted: str | None) -> urllib3.HTTPConnectionPool:
    """Connections to the host of `url`, by the environment's proxy and with TLS as boto3 has it."""
    options: dict[str, Any] = {
        "maxsize": CONNECTIONS,
        "socket_options": [*HTTPConnection.default_socket_options, _KEEPALIVE],
    }
    scheme, host = urlsplit(url)[:2]
    if scheme == "https":
        options["ssl_context"] = _tls(trusted)
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    pool = _manager(proxy, options).connection_from_url(url)
    pool.ConnectionCls = StoppableHTTPS if scheme == "https" else StoppableHTTP
    return pool


def _manager(proxy: str | None, options: dict[str, Any]) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(**options)
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login if parts.username else None)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return urllib3.ProxyManager(address, proxy_headers=headers, **options)
    except (ValueError, urllib3.exceptions.HTTPError):  # whose text may hold a login
        raise StorageMisconfigured(
            "HTTP_PROXY or HTTPS_PROXY is of the form http://[user:password@]host[:port]"
        ) from None


def _tls(trusted: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=trusted or certifi.where())
    except OSError as error:
        raise StorageMisconfigured(
            "S3_TLS_BUNDLE (or AWS_CA_BUNDLE) is the path of a file with certificates in PEM form"
        ) from error


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


def _revealed(secret: Any) -> str | None:
    return None if secret is None else secret.get_secret_value()


def normal_prefix(prefix: str) -> str:
    """Empty, or with exactly one `/` at its end: without it `foo` would read `foobar`."""
    bare = prefix.strip("/")
    if not bare:
        return ""
    try:
        check_key(bare)
    except InvalidKey as error:
        raise StorageMisconfigured(f"S3_PREFIX cannot begin a key: {error}") from None
    if len(bare.encode()) >= MAX_PREFIX_BYTES:
        raise StorageMisconfigured(f"S3_PREFIX is longer than {MAX_PREFIX_BYTES - 1} bytes")
    return f"{bare}/"
