"""The requests that carry bytes or long lists: signed by botocore's signer, sent by urllib3.

boto3 spends more CPU time on building such a request from its model of S3 and on reading the answer
by the model than on signing and sending it. Everything else goes through boto3's client.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from urllib3 import Retry

from stores.s3.listing import Listing, read_listing, read_xml
from stores.s3.metering import NO_ANSWER, OK, RequestCounter, outcome_of
from stores.s3.stopping import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from botocore.credentials import Credentials
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
#: Bytes handed to the socket at a time. One bite has to pass within the time of silence, so it is
#: small enough for a slow wire.
BITE = 128 << 10
#: What `retries=False` means to urllib3, made once.
ONCE = Retry(total=False, redirect=False)
#: Bytes of a refusal that are read; S3's have some hundreds.
MAX_REFUSAL = 1 << 20


class Destination(NamedTuple):
    """Where a bucket is."""

    #: A key follows directly.
    url: str
    #: To sign for.
    region: str


class SignedCalls:
    """Four calls of S3 on one bucket, and links. Blocking, thread-safe.

    They raise ClientError for an answer that is no success, as boto3 does, and urllib3's HTTPError
    where there is no answer.
    """

    def __init__(
        self,
        destination: Destination,
        credentials: Credentials,
        pool: HTTPConnectionPool,
        timeout: Timeout,
        counter: RequestCounter,
    ) -> None:
        """`pool` makes stoppable connections; `timeout` says how long a silence may last."""
        self._destination = destination
        self._credentials = credentials
        self._pool = pool
        self._timeout = timeout
        self._counter = counter
        # an HTTP proxy takes whole URLs, every other server only the path
        parts = urlsplit(destination.url)
        proxied = pool.proxy is not None and parts.scheme == "http"
        self._target = destination.url if proxied else parts.path

    def put_object(
        self, key: str, data: bytes | bytearray, content_type: str | None, sha256: str, stop: Stop
    ) -> str:
        """Returns the ETag. `sha256` is in hex."""
        headers = {"Content-Type": content_type} if content_type else {}
        request = _Request("PutObject", "PUT", _path(key), headers, sha256, data)
        with self._answer(request, stop) as answer:
            return answer.headers["ETag"]

    def upload_part(
        self, key: str, upload_id: str, number: int, data: bytes | bytearray, stop: Stop
    ) -> str:
        """Returns the ETag. TLS guards the bytes on their way; over HTTP their hash is signed."""
        guarded = self._destination.url.startswith("https:")
        sha256 = UNSIGNED_PAYLOAD if guarded else hashlib.sha256(data).hexdigest()
        path = _path(key, {"partNumber": str(number), "uploadId": upload_id})
        request = _Request("UploadPart", "PUT", path, {}, sha256, data)
        with self._answer(request, stop) as answer:
            return answer.headers["ETag"]

    @contextmanager
    def get_object(
        self, key: str, headers: Mapping[str, str], stop: Stop
    ) -> Iterator[BaseHTTPResponse]:
        """The answer, whose body is still to be read."""
        request = _Request("GetObject", "GET", _path(key), headers)
        with self._answer(request, stop) as answer:
            yield answer

    def list_objects_v2(self, query: Mapping[str, str]) -> Listing:
        """One page. Raises ResponseParserError if the answer is no list."""
        path = _path("", {"list-type": "2", "encoding-type": "url", **query})
        with self._answer(_Request("ListObjectsV2", "GET", path, {}), Stop()) as answer:
            return read_listing(answer.data)

    def link(self, key: str, seconds: int, query: Mapping[str, str]) -> str:
        """A link to read an object by. Makes no request."""
        request = AWSRequest("GET", self._destination.url + _path(key, query))
        keys = self._credentials.get_frozen_credentials()
        S3SigV4QueryAuth(keys, "s3", self._destination.region, seconds).add_auth(request)
        return str(request.url)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    # ---- inside

    @contextmanager
    def _answer(self, request: _Request, stop: Stop) -> Iterator[BaseHTTPResponse]:
        """A success. Counts the request when the caller has read the answer."""
        self._counter.began(request.operation, len(request.data or b""))
        outcome = NO_ANSWER
        try:
            with stop.ends_request(cast("float", self._timeout.read_timeout)):
                answer = self._send(request, stop)
                try:
                    if answer.status >= 300:
                        outcome = outcome_of(answer.status)
                        raise _refusal(answer, request.operation)
                    yield answer
                    answer.drain_conn()
                finally:
                    answer.close()
            outcome = OK
        finally:
            self._counter.ended(outcome)

    def _send(self, request: _Request, stop: Stop) -> BaseHTTPResponse:
        _, method, path, headers, sha256, data = request
        length = {} if data is None else {"Content-Length": str(len(data))}
        signed = AWSRequest(method, self._destination.url + path, {**headers, **length})
        keys = self._credentials.get_frozen_credentials()
        _Signer(keys, self._destination.region, sha256).add_auth(signed)
        return self._pool.urlopen(
            method,
            self._target + path,
            body=None if data is None else cast("Any", _bites(data, stop)),
            headers=dict(signed.headers.items()),
            timeout=self._timeout,
            retries=ONCE,
            redirect=False,
            assert_same_host=False,  # a proxy is asked for another host than its own
            preload_content=False,
            decode_content=False,
        )


class _Request(NamedTuple):
    operation: str
    method: str
    #: Of the key, with the query.
    path: str
    headers: Mapping[str, str]
    sha256: str = EMPTY_SHA256
    data: bytes | bytearray | None = None


class _Signer(S3SigV4Auth):
    """Signs a hash of the body that is known already."""

    def __init__(self, credentials: Any, region: str, sha256: str) -> None:
        super().__init__(credentials, "s3", region)
        self._sha256 = sha256

    def payload(self, request: AWSRequest) -> str:  # noqa: ARG002
        return self._sha256


def _bites(data: bytes | bytearray, stop: Stop) -> Iterator[memoryview]:
    whole = memoryview(data)
    for start in range(0, len(whole), BITE):
        stop.check()
        yield whole[start : start + BITE]


def _path(key: str, query: Mapping[str, str] | None = None) -> str:
    path = quote(key, safe="/~")
    return f"{path}?{urlencode(query, quote_via=quote, safe='~')}" if query else path


def _refusal(answer: BaseHTTPResponse, operation: str) -> ClientError:
    """As boto3 raises it. Its code is the status where the body names none."""
    told = {"Code": str(answer.status)}
    with suppress(ElementTree.ParseError):
        told |= {each.tag: each.text or "" for each in read_xml(answer.read(MAX_REFUSAL))}
    headers = {name.lower(): value for name, value in answer.headers.items()}
    metadata = {"HTTPStatusCode": answer.status, "HTTPHeaders": headers}
    return ClientError(cast("Any", {"Error": told, "ResponseMetadata": metadata}), operation)
