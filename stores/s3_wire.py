"""The requests that are made most or hold most: signed and sent by botocore, but not made by it.

To build a request from botocore's model of S3, and to read the answer by it, takes more CPU time
than to sign and send it (`bench/request_profile.py`); most files are small, and lists are long. A
GET, a list of keys, a PUT of a file's bytes and a link to read are simple enough to be written
down; all else goes by the client, conditional writes above all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from xml.etree import ElementTree

import botocore
from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.compat import unquote_str
from botocore.exceptions import ClientError, NoCredentialsError, UnknownSignatureVersionError
from botocore.parsers import ResponseParserError, RestXMLParser
from botocore.response import StreamingBody
from botocore.utils import percent_encode, percent_encode_sequence

from storage import Listed
from stores.s3_headers import parse_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from botocore.awsrequest import AWSResponse
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

    from stores.s3_files import Body

T = TypeVar("T")

AGENT = {"User-Agent": f"Botocore/{botocore.__version__}"}
#: Of nothing, which is what a GET sends.
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#: Bytes from which on a store is asked first whether it would take them.
WORTH_ASKING = 1 << 20


class Got(NamedTuple):
    """A success."""

    status: int
    #: By names in any case.
    headers: Mapping[str, str]
    body: StreamingBody


class Wire:
    """A bucket by its URLs. Blocking, thread-safe; raises what `client` would."""

    def __init__(self, client: S3Client, credentials: Credentials | None, bucket: str) -> None:
        """`client` says where the bucket is, lends its connections and hears of every request.

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
        self._bucket_url = f"{url}/"
        self._signs_bodies = not url.startswith("https:")
        scheme = properties["authSchemes"][0]
        if (scheme["name"], scheme["signingName"]) != ("sigv4", "s3"):
            raise UnknownSignatureVersionError(signature_version=scheme["name"])
        self._region = scheme["signingRegion"]
        self._credentials = credentials
        self._http = inside._endpoint.http_session
        self._emit = client.meta.events.emit

    def put(
        self,
        operation: str,
        key: str,
        body: Body,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str | None = None,
        sha256: str | None = None,
    ) -> str:
        """Write bytes; returns their ETag. `sha256` in hex, if it is known.

        What TLS does not guard on its way is signed with its hash, or damaged bytes would be taken.
        """
        headers: dict[str, Any] = {"Content-Length": str(len(body))}
        if content_type:
            headers["Content-Type"] = content_type
        if len(body) > WORTH_ASKING:  # a refusal comes before the bytes are sent, not instead
            headers["Expect"] = b"100-continue"  # bytes: what botocore's connection looks for
        if sha256 is None:
            sha256 = body.sha256() if self._signs_bodies else UNSIGNED_PAYLOAD
        url = self._url(key, query)
        return self._send(operation, "PUT", url, headers, sha256, _tag, body)

    def get(self, key: str, headers: Mapping[str, str]) -> Got:
        """Read all of its body, or close it."""
        return self._send("GetObject", "GET", self._url(key), headers, EMPTY_SHA256, _got)

    def list(self, prefix: str, after: str | None, limit: int) -> tuple[list[Listed], bool]:
        """Up to `limit` objects in key order, and whether there are more.

        Raises:
            ResponseParserError: the answer is no list.
        """
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        query |= {"max-keys": str(limit)} | ({"start-after": after} if after else {})
        url = f"{self._bucket_url}?{percent_encode_sequence(query)}"
        return self._send("ListObjectsV2", "GET", url, {}, EMPTY_SHA256, _listed)

    def link(self, key: str, seconds: int, query: Mapping[str, str]) -> str:
        """By which whoever has it may read the object. Asks the store nothing."""
        request = AWSRequest("GET", self._url(key, query))
        keys = self._credentials.get_frozen_credentials()
        S3SigV4QueryAuth(keys, "s3", self._region, seconds).add_auth(request)
        return str(request.url)

    def _url(self, key: str, query: Mapping[str, str] | None = None) -> str:
        url = f"{self._bucket_url}{percent_encode(key, safe='/~')}"
        return f"{url}?{percent_encode_sequence(dict(query))}" if query else url

    def _send(
        self, operation: str, method: str, url: str, headers: Mapping[str, Any], sha256: str,
        read: Callable[[Got], T], body: Body | None = None,
    ) -> T:  # fmt: skip
        """What `read` makes of a success. If it cannot, the answer counts as none.

        Raises:
            ClientError: for all that is not success.
        """
        request = AWSRequest(method, url, {**AGENT, **headers}, body, stream_output=True)
        keys = self._credentials.get_frozen_credentials()
        _Signer(keys, self._region, sha256).add_auth(request)
        prepared = request.prepare()
        self._emit(f"before-send.s3.{operation}", request=prepared)
        try:
            answer = self._http.send(prepared)
            refused = _refusal(answer) if answer.status_code >= 300 else None
            result = None if refused else read(_success(answer))
        except Exception as error:
            self._emit(f"after-call-error.s3.{operation}", exception=error)
            raise
        told = refused or {"ResponseMetadata": {"HTTPStatusCode": answer.status_code}}
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


def _refusal(answer: AWSResponse) -> Any:
    """As botocore tells of one. How long it says it is does not matter: a 304 has no body, and may
    say how long the object is."""
    body = StreamingBody(answer.raw, cast("Any", None)).read()
    told = {"status_code": answer.status_code, "headers": answer.headers, "body": body}
    return RestXMLParser().parse(told, cast("Any", None))  # errors have no model


def _success(answer: AWSResponse) -> Got:
    length = answer.headers.get("Content-Length")
    if length is not None and not length.isdecimal():
        raise ResponseParserError("a length that is none")
    return Got(answer.status_code, answer.headers, StreamingBody(answer.raw, cast("Any", length)))


def _got(answer: Got) -> Got:
    return answer


def _tag(answer: Got) -> str:
    answer.body.read()  # nothing, but then the connection can be used again
    return answer.headers["ETag"]


def _listed(answer: Got) -> tuple[list[Listed], bool]:
    """Raises ResponseParserError if it is no list."""
    data = answer.body.read()
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(encoding="utf-8"))  # noqa: S314
        for element in root.iter():  # some stores have a namespace, and some have two
            element.tag = element.tag.rpartition("}")[2]
        if root.tag == "Error":  # S3 may find out that late
            raise _late_failure(root)
        return _rows(root)
    except (ElementTree.ParseError, ValueError, RuntimeError, OverflowError) as error:
        raise ResponseParserError("not a list") from error


def _late_failure(root: ElementTree.Element) -> ClientError:
    told = {"Error": {"Code": root.findtext("Code", "")}}
    metadata = {"HTTPStatusCode": 500, "HTTPHeaders": dict[str, str]()}
    return ClientError(cast("Any", told | {"ResponseMetadata": metadata}), "ListObjectsV2")


def _rows(root: ElementTree.Element) -> tuple[list[Listed], bool]:
    if root.tag != "ListBucketResult":
        raise ValueError(root.tag)
    decode = unquote_str if root.findtext("EncodingType") == "url" else str
    rows = [
        Listed(
            decode(row.findtext("Key", "")), int(row.findtext("Size", "")),
            parse_time(row.findtext("LastModified", "")).timestamp(),
        )
        for row in root.iter("Contents")
    ]  # fmt: skip
    if not all(row.key for row in rows):
        raise ValueError("a row without a key")
    return rows, root.findtext("IsTruncated") == "true"
