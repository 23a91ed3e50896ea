"""The requests that are made most or hold most: signed and sent by botocore, but not made by it.

To build a request from botocore's model of S3, and to read the answer by it, takes more CPU time
than to sign and send it (`bench/request_profile.py`); most files are small, and lists are long. A
GET, a list of keys, a PUT of a file's bytes and a link to read are simple enough to be written
down; all else goes by the client, conditional writes above all.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

import botocore
from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.compat import unquote_str
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError, RestXMLParser
from botocore.response import StreamingBody
from botocore.utils import lowercase_dict, percent_encode, percent_encode_sequence

from storage import Listed
from stores.s3_client import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from botocore.awsrequest import AWSResponse
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

    from stores.s3_files import Body

AGENT = {"User-Agent": f"Botocore/{botocore.__version__}"}
#: Of nothing, which is what a GET sends.
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#: Bytes from which on a store is asked first whether it would take them.
WORTH_ASKING = 1 << 20


class Wire:
    """A bucket by its URLs. Blocking, thread-safe; raises what `client` would."""

    def __init__(self, client: S3Client, credentials: Credentials | None, bucket: str) -> None:
        """`client` says where the bucket is, lends its connections and hears of every request.

        Raises:
            NoCredentialsError: there are none.
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
        self._region = properties["authSchemes"][0]["signingRegion"]
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
        answer, _ = self._send(operation, "PUT", url, headers, sha256, body, whole=True)
        return answer["ETag"]

    def get(self, key: str, headers: Mapping[str, str]) -> tuple[Mapping[str, str], StreamingBody]:
        """Headers and bytes. Read all of them, or close them."""
        return self._send("GetObject", "GET", self._url(key), headers, EMPTY_SHA256)

    def list(self, prefix: str, after: str | None, limit: int) -> tuple[list[Listed], bool]:
        """Up to `limit` objects in key order, and whether there are more.

        Raises:
            ResponseParserError: the answer is no list.
        """
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        query |= {"max-keys": str(limit)} | ({"start-after": after} if after else {})
        url = f"{self._bucket_url}?{percent_encode_sequence(query)}"
        _, body = self._send("ListObjectsV2", "GET", url, {}, EMPTY_SHA256, whole=True)
        return _read_list(body.read())

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
        body: Body | None = None, *, whole: bool = False,
    ) -> tuple[Mapping[str, str], StreamingBody]:  # fmt: skip
        """With `whole`, all of the answer has come, or it counts as none.

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
            came = StreamingBody(answer.raw, answer.headers.get("Content-Length"))
            parsed = _parsed(answer, came)
            if whole:
                came = _in_memory(came.read())
        except Exception as error:
            self._emit(f"after-call-error.s3.{operation}", exception=error)
            raise
        self._emit(f"response-received.s3.{operation}", parsed_response=parsed)
        if answer.status_code >= 300:
            raise ClientError(parsed, operation)
        return answer.headers, came


def _in_memory(data: bytes) -> StreamingBody:
    return StreamingBody(BytesIO(data), len(data))


class _Signer(S3SigV4Auth):
    """With a hash of the body that is known already; botocore would read the body once more."""

    def __init__(self, credentials: Any, region: str, sha256: str) -> None:
        super().__init__(credentials, "s3", region)
        self._sha256 = sha256

    def payload(self, request: AWSRequest) -> str:  # noqa: ARG002
        return self._sha256


def _parsed(answer: AWSResponse, came: StreamingBody) -> Any:
    """As botocore tells of an answer; of a good one, only how it was."""
    if answer.status_code < 300:
        return {"ResponseMetadata": {
            "HTTPStatusCode": answer.status_code, "HTTPHeaders": lowercase_dict(answer.headers),
        }}  # fmt: skip
    told = {"status_code": answer.status_code, "headers": answer.headers, "body": came.read()}
    return RestXMLParser().parse(told, cast("Any", None))  # errors have no model


def _read_list(data: bytes) -> tuple[list[Listed], bool]:
    """Raises ResponseParserError if it is none."""
    try:
        return _rows(ElementTree.fromstring(data))  # noqa: S314  # as botocore reads them
    except (ElementTree.ParseError, ValueError) as error:
        raise ResponseParserError("not a list") from error


def _rows(root: ElementTree.Element) -> tuple[list[Listed], bool]:
    space, _, name = root.tag.rpartition("}")
    if name != "ListBucketResult":
        raise ValueError(name)
    space += "}" if space else ""
    key, size, modified = f"{space}Key", f"{space}Size", f"{space}LastModified"
    decode = unquote_str if root.findtext(f"{space}EncodingType") == "url" else str
    rows = [
        Listed(
            decode(row.findtext(key, "")), int(row.findtext(size, "")),
            parse_time(row.findtext(modified, "")).timestamp(),
        )
        for row in root.iter(f"{space}Contents")
    ]  # fmt: skip
    return rows, root.findtext(f"{space}IsTruncated") == "true"
