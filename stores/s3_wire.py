"""The requests that are made most or hold most: signed by botocore, sent by libcurl.

To build a request from botocore's model of S3, to send it and to read the answer by the model takes
more CPU time than to sign it (`bench/request_profile.py`); most files are small, and lists are
long. A GET, a list of keys, a PUT and a link to read are simple enough to be written down; all else
goes by the client.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit
from xml.etree import ElementTree

import botocore
from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest, HeadersDict
from botocore.compat import unquote_str
from botocore.exceptions import ClientError, NoCredentialsError, UnknownSignatureVersionError
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError, RestXMLParser
from botocore.utils import percent_encode, percent_encode_sequence

from storage import Listed
from stores.s3_connections import Connections
from stores.s3_headers import parse_time, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

    from stores.s3_connections import Answer, Head, Taker
    from stores.s3_files import Body

T = TypeVar("T")

AGENT = {"User-Agent": f"Botocore/{botocore.__version__}"}
#: Of nothing, which is what a GET sends.
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#: Bytes from which on a store is asked first whether it would take them.
WORTH_ASKING = 1 << 20


class Wire:
    """A bucket by its URLs. Blocking, thread-safe; raises what `client` would."""

    def __init__(self, client: S3Client, credentials: Credentials | None, bucket: str) -> None:
        """`client` says where the bucket is and how to get there, and hears of every request.

        Raises:
            NoCredentialsError: there are none.
            UnknownSignatureVersionError: the bucket is of a kind that takes other signatures.
        """
        if credentials is None:
            raise NoCredentialsError
        inside = cast("Any", client)  # botocore is pinned, and tests compare what both send
        url, _, properties = inside._resolve_endpoint_ruleset(
            client.meta.service_model.operation_model("PutObject"),
            {"Bucket": bucket, "Key": "k"},
            {"client_config": client.meta.config, "has_streaming_input": True, "auth_type": None},
        )
        # a host is signed in small letters, and libcurl sends it as it is written
        parts = urlsplit(url)
        self._bucket_url = f"{urlunsplit(parts._replace(netloc=parts.netloc.lower()))}/"
        self._signs_bodies = not url.startswith("https:")
        scheme = properties["authSchemes"][0]
        if (scheme["name"], scheme["signingName"]) != ("sigv4", "s3"):
            raise UnknownSignatureVersionError(signature_version=scheme["name"])
        self._region = scheme["signingRegion"]
        self._credentials = credentials
        self._connections = _connections(client, url)
        self._emit = client.meta.events.emit

    def put(
        self,
        operation: str,
        key: str,
        body: Body,
        *,
        query: Mapping[str, str] | None = None,
        condition: Mapping[str, str] | None = None,
        content_type: str | None = None,
        sha256: str | None = None,
    ) -> str:
        """Write bytes; returns their ETag. `condition`: headers; `sha256` in hex, if known.

        What TLS does not guard on its way is signed with its hash, or damaged bytes would be taken.
        """
        headers: dict[str, Any] = {"Content-Length": str(len(body)), **(condition or {})}
        if content_type:
            headers["Content-Type"] = content_type
        if len(body) > WORTH_ASKING:  # a refusal comes before the bytes are sent, not instead
            headers["Expect"] = "100-continue"
        if sha256 is None:
            sha256 = body.sha256() if self._signs_bodies else UNSIGNED_PAYLOAD
        url = self._url(key, query)
        return self._send(operation, url, headers, sha256, _into_nothing, _tag, body)

    def get(self, key: str, headers: Mapping[str, str], taker: Taker) -> Head:
        """`taker` is told how a success begins, and gives what takes its body, chunk by chunk."""
        return self._send("GetObject", self._url(key), headers, EMPTY_SHA256, taker, _itself)

    def read(self, key: str, headers: Mapping[str, str]) -> tuple[Head, bytes]:
        """An object that is small."""
        body = BytesIO()  # gives what it holds without another copy
        head = self.get(key, headers, lambda _: body.write)
        return head, body.getvalue()

    def list(self, prefix: str, after: str | None, limit: int) -> tuple[list[Listed], bool]:
        """Up to `limit` objects in key order, and whether there are more.

        Raises:
            ResponseParserError: the answer is no list.
        """
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        query |= {"max-keys": str(limit)} | ({"start-after": after} if after else {})
        url = f"{self._bucket_url}?{percent_encode_sequence(query)}"
        body = BytesIO()
        return self._send(
            "ListObjectsV2",
            url,
            {},
            EMPTY_SHA256,
            lambda _: body.write,
            lambda _: _listed(body.getvalue()),
        )

    def link(self, key: str, seconds: int, query: Mapping[str, str]) -> str:
        """By which whoever has it may read the object. Asks the store nothing."""
        request = AWSRequest("GET", self._url(key, query))
        keys = self._credentials.get_frozen_credentials()
        S3SigV4QueryAuth(keys, "s3", self._region, seconds).add_auth(request)
        return str(request.url)

    def _url(self, key: str, query: Mapping[str, str] | None = None) -> str:
        url = f"{self._bucket_url}{percent_encode(key, safe='/~')}"
        return f"{url}?{percent_encode_sequence(dict(query))}" if query else url

    def close(self) -> None:
        """Let go of connections."""
        self._connections.close()

    def _send(
        self,
        operation: str,
        url: str,
        headers: Mapping[str, Any],
        sha256: str,
        taker: Taker,
        read: Callable[[Head], T],
        body: Body | None = None,
    ) -> T:
        """A GET, or with a body a PUT: what `read` makes of a success when all of it was taken. If
        it cannot, the answer counts as none.

        Raises:
            ClientError: for all that is not success.
        """
        method = "GET" if body is None else "PUT"
        request = AWSRequest(method, url, {**AGENT, **headers}, body, stream_output=True)
        keys = self._credentials.get_frozen_credentials()
        _Signer(keys, self._region, sha256).add_auth(request)
        prepared = request.prepare()
        self._emit(f"before-send.s3.{operation}", request=prepared)
        try:
            answer = self._connections.send(url, cast("Any", prepared.headers), body, taker)
            refused = None if answer.head.success else _refusal(answer)
            result = None if refused else read(answer.head)
        except Exception as error:
            self._emit(f"after-call-error.s3.{operation}", exception=error)
            raise
        told = refused or {"ResponseMetadata": {"HTTPStatusCode": answer.head.status}}
        self._emit(f"response-received.s3.{operation}", parsed_response=told)
        if refused:
            raise ClientError(refused, operation)
        return cast("T", result)


class _Signer(S3SigV4Auth):
    """With a hash of the body that is known already; botocore would read the body once more."""

    def __init__(self, credentials: Any, region: str, sha256: str) -> None:
        super().__init__(credentials, "s3", region)
        self._sha256 = sha256

    def payload(self, request: AWSRequest) -> str:  # noqa: ARG002
        return self._sha256


def _connections(client: S3Client, url: str) -> Connections:
    """To where `client` goes, as it would: what it waits for, trusts, and passes through."""
    config, http = cast("Any", client.meta.config), cast("Any", client)._endpoint.http_session
    return Connections(
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        certificates=cast("str", get_cert_path(http._verify)),
        proxy=http._proxy_config.proxy_url_for(url),
    )


def _refusal(answer: Answer) -> Any:
    """As botocore tells of one."""
    head, body = answer
    told = {"status_code": head.status, "headers": HeadersDict(head.headers), "body": body}
    return RestXMLParser().parse(told, cast("Any", None))  # errors have no model


def _into_nothing(_: Head) -> Callable[[bytes], object]:
    return len


def _itself(head: Head) -> Head:
    return head


def _tag(head: Head) -> str:
    return head.headers["etag"]


def _listed(data: bytes) -> tuple[list[Listed], bool]:
    """Raises ResponseParserError if it is no list."""
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(encoding="utf-8"))  # noqa: S314
        for element in root.iter():  # some stores have a namespace, and some have two
            element.tag = element.tag.rpartition("}")[2]
        if root.tag == "Error":  # S3 may find out that late
            raise _late_failure(root)
        return _rows(root)
    except (ElementTree.ParseError, ValueError) as error:
        raise ResponseParserError("not a list") from error


def _late_failure(root: ElementTree.Element) -> ClientError:
    told = {"Error": {"Code": root.findtext("Code", "")}}
    metadata = {"HTTPStatusCode": 500, "HTTPHeaders": dict[str, str]()}
    return ClientError(cast("Any", told | {"ResponseMetadata": metadata}), "ListObjectsV2")


def _rows(root: ElementTree.Element) -> tuple[list[Listed], bool]:
    if root.tag != "ListBucketResult":
        raise ValueError(root.tag)
    decode = _unescaped if root.findtext("EncodingType") == "url" else str
    rows = [
        Listed(
            decode(row.findtext("Key", "")),
            int(row.findtext("Size", "")),
            parse_time(row.findtext("LastModified", "")).timestamp(),
            version_of(row.findtext("ETag", "")),
        )
        for row in root.iter("Contents")
    ]
    if not all(row.key for row in rows):
        raise ValueError("a row without a key")
    return rows, root.findtext("IsTruncated") == "true"


def _unescaped(key: str) -> str:
    """As `unquote_str`, for which a key of ours takes as long as all else of its row."""
    key = key.replace("%2F", "/").replace("%7E", "~")
    return unquote_str(key) if "%" in key or "+" in key else key
