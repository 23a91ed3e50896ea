"""One S3 request per call: blocking, thread-safe, never retried, every failure typed.

The callers decide what to retry and what an unclear answer means: only they know what is safe.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from storage import ObjectNotFound, Page, StorageUnavailable
from stores.s3.client import Clients
from stores.s3.errors import BOTO_ERRORS, PreconditionRefused, translate
from stores.s3.headers import (
    byte_range,
    extent_of,
    facts_of,
    offset_from,
    still,
    stored_of,
    version_of,
)
from stores.s3.stopping import Stop
from utils import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Literal

    from mypy_boto3_s3 import S3Client
    from urllib3 import BaseHTTPResponse

    from storage import ObjectFacts, Stored
    from stores.s3.client import S3Config
    from stores.s3.listing import Listing
    from stores.s3.signed_calls import SignedCalls
    from worker.meter import Meter

Bytes = bytes | bytearray
#: Bytes that are read at a time.
BITE = 1 << 20


class Range(NamedTuple):
    """A stretch of an object."""

    #: In order; not joined, because that would copy them.
    bites: list[bytes]
    #: None: it has no bytes, and the store did not say of which version.
    version: str | None
    #: Bytes in the whole object.
    total: int


class Part(NamedTuple):
    """A part of an upload, as the store has it."""

    number: int
    size: int
    tag: str


class PartsPage(NamedTuple):
    """Parts of an upload, by number."""

    parts: Sequence[Part]
    #: There are some with higher numbers.
    more: bool


class FoldersPage(NamedTuple):
    """Some of the names directly under a prefix, in key order."""

    names: Sequence[str]
    #: The last key or folder that was looked at; None: there is nothing behind it.
    last: str | None


class Bucket:
    """A bucket, by full keys (the operator's prefix included)."""

    def __init__(self, config: S3Config, meter: Meter) -> None:
        self.config = config
        self.place = config.place
        self._meter = meter
        self._name = config.bucket
        self._clients = Clients(config, meter)

    # ---- records, notes and lists: requests that give up early

    def get(self, key: str, cached: Stored | None = None) -> Stored:
        """The object; `cached` itself, its age made new, if it is still that."""
        condition = {"IfNoneMatch": cached.version} if cached else {}
        with self._errors(key):
            try:
                return self._got(key, condition, None)
            except ClientError as error:
                if cached is None or _status(error) != 304:
                    raise
                return still(cached, error.response["ResponseMetadata"]["HTTPHeaders"])

    def get_start(self, key: str, limit: int) -> Stored:
        """The first `limit` bytes of an object. Two requests for an empty one."""
        with self._errors(key):
            try:
                return self._got(key, byte_range(0, limit), limit)
            except ClientError as error:
                if _status(error) != 416:
                    raise
                # an empty object has no first byte, and some stores say so
                return self._got(key, {}, limit)

    def _got(self, key: str, options: Mapping[str, str], limit: int | None) -> Stored:
        client = self._control
        with _readable():
            answer = client.get_object(Bucket=self._name, Key=key, **cast("Any", options))
        status, headers = _head(answer)
        with answer["Body"] as body:
            if limit is not None:
                extent_of(status, headers, 0, limit)  # before a store that ignores it sends all
            data = body.read()
        self._meter.moved("down", len(data))
        return stored_of(data, headers)

    def stat(self, key: str) -> ObjectFacts:
        """All but the bytes. Two requests for an object that is not there."""
        with self._errors(key):
            client = self._control
            try:
                with _readable():
                    answer = client.head_object(Bucket=self._name, Key=key)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                # HEAD has no body to say so, but it may be the bucket that is not there
                client.list_objects_v2(Bucket=self._name, Prefix=key, MaxKeys=1)
                raise ObjectNotFound(f"there is no object {key!r}") from None
            return facts_of(_head(answer)[1])

    def put(self, key: str, data: bytes, content_type: str | None = None) -> str:
        """Write, whatever is there. Returns the version."""
        typed = {"ContentType": content_type} if content_type else {}
        return self._put(key, data, typed)

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Write over exactly `version`; None: where nothing is. Returns the new version.

        Raises:
            PreconditionRefused, ObjectNotFound: it is not so, or our own write made it so.
        """
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        return self._put(key, data, condition, conditional=True)

    def _put(
        self, key: str, data: bytes, options: dict[str, str], *, conditional: bool = False
    ) -> str:
        with self._errors(key, conditional=conditional):
            answer = self._control.put_object(
                Bucket=self._name, Key=key, Body=data, **cast("Any", options)
            )
            return version_of(answer.get("ETag"))

    def list(self, prefix: str, start_after: str | None, limit: int) -> Page:
        """One page, by full keys."""
        rows, _, more = self._listing(prefix, start_after, limit, {})
        return Page(rows, rows[-1].key if rows and more else None)

    def list_folders(self, prefix: str, after: str | None, limit: int) -> FoldersPage:
        """One page of what lies directly under `prefix`, which may hold no folders."""
        rows, folders, more = self._listing(prefix, after, limit, {"delimiter": "/"})
        names = [name for folder in folders if (name := folder[len(prefix) : -1])]
        last = max([*folders, *(row.key for row in rows)], default=None) if more else None
        return FoldersPage(names, last)

    def _listing(
        self, prefix: str, after: str | None, limit: int, query: Mapping[str, str]
    ) -> Listing:
        start = {"start-after": after} if after else {}
        with self._errors(prefix):
            return self._signed_control.list_objects_v2(
                {"prefix": prefix, "max-keys": str(limit), **start, **query}
            )

    def delete(self, key: str) -> None:
        """Remove one object, there or not."""
        with self._errors(key):
            self._control.delete_object(Bucket=self._name, Key=key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove up to 1000 objects, there or not, in one request."""
        with self._errors(keys[0]):
            answer = self._control.delete_objects(
                Bucket=self._name,
                Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
            )
        for failed in answer.get("Errors", []):
            if failed.get("Code") != "NoSuchKey":
                raise self._failure_within(failed.get("Code", ""), answer)

    def link(self, key: str, seconds: int, query: Mapping[str, str]) -> str:
        """To read it; `query` as S3 names it. Asks the store nothing."""
        with self._errors(key):
            return self._signed_control.link(key, seconds, query)

    def presign(
        self,
        operation: Literal["put_object", "upload_part"],
        params: dict[str, Any],
        seconds: int,
    ) -> str:
        """A link to write by. Makes no request."""
        with self._errors(params["Key"]):
            return self._control.generate_presigned_url(
                operation, Params={"Bucket": self._name, **params}, ExpiresIn=seconds
            )

    def clock_offset(self) -> float | None:
        """Our clock minus the store's, in seconds. One request."""
        with self._errors(""):
            answer = self._control.list_objects_v2(Bucket=self._name, MaxKeys=1)
        return offset_from(answer["ResponseMetadata"]["HTTPHeaders"])

    # ---- files

    def put_file(
        self, key: str, data: Bytes, content_type: str | None, sha256: str, stop: Stop
    ) -> None:
        """Write a file that fits into one request; `sha256` is that of its bytes, in hex."""
        with self._errors(key):
            self._signed_files.put_object(key, data, content_type, sha256, stop)

    def begin_upload(self, key: str, content_type: str | None, mark: str) -> str:
        """Returns the id of a multipart upload, whose object will carry `mark`."""
        typed = {"ContentType": content_type} if content_type else {}
        with self._errors(key):
            answer = self._files.create_multipart_upload(
                Bucket=self._name, Key=key, Metadata={"upload": mark}, **cast("Any", typed)
            )
            return answer["UploadId"]

    def upload_part(self, key: str, upload_id: str, number: int, data: Bytes, stop: Stop) -> str:
        """Returns the part's tag, to be told to `complete_upload`."""
        with self._errors(key):
            return self._signed_files.upload_part(key, upload_id, number, data, stop)

    def parts(self, key: str, upload_id: str, after: int) -> PartsPage | None:
        """Up to 1000 parts with numbers above `after`; None: there is no such upload."""
        with self._errors(key):
            try:
                answer = self._control.list_parts(
                    Bucket=self._name, Key=key, UploadId=upload_id, PartNumberMarker=after
                )
            except ClientError as error:
                if not _no_upload(error):
                    raise
                return None
            parts = [
                Part(row["PartNumber"], row["Size"], row["ETag"]) for row in answer.get("Parts", [])
            ]
            return PartsPage(parts, bool(parts) and answer["IsTruncated"])

    def complete_upload(self, key: str, upload_id: str, tags: Sequence[str]) -> None:
        """Make an object of the parts."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        with self._errors(key):
            self._files.complete_multipart_upload(
                Bucket=self._name,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": cast("Any", parts)},
            )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw the parts away. Idempotent."""
        with self._errors(key):
            try:
                self._control.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if not _no_upload(error):
                    raise

    def mark(self, key: str) -> str | None:
        """What `begin_upload` marked the object with; None if it was not written that way."""
        with self._errors(key):
            answer = self._control.head_object(Bucket=self._name, Key=key)
        return answer["Metadata"].get("upload")

    def get_range(
        self, key: str, offset: int, length: int, version: str | None, stop: Stop
    ) -> Range:
        """Up to `length` bytes from `offset` of exactly `version`, if it is given.

        None at the end of the object or beyond it.

        Raises:
            PreconditionRefused: another version is there.
            StorageUnavailable: also when it was stopped, or other bytes came.
        """
        headers = byte_range(offset, length) | ({"If-Match": version} if version else {})
        with self._errors(key, conditional=True):
            try:
                with self._signed_files.get_object(key, headers, stop) as answer:
                    return self._read(answer, offset, length, stop)
            except ClientError as error:
                if _status(error) != 416:
                    raise
                return Range([], None, offset)

    def _read(self, answer: BaseHTTPResponse, offset: int, length: int, stop: Stop) -> Range:
        # before a store that ignores the range sends everything
        size, total = extent_of(answer.status, answer.headers, offset, length)
        bites: list[bytes] = []
        for bite in answer.stream(BITE):
            stop.check()
            bites.append(bite)
            self._meter.moved("down", len(bite))
        if sum(map(len, bites)) != size:
            raise ResponseParserError("other bytes come than were told")
        return Range(bites, version_of(answer.headers.get("etag")), total)

    def close(self) -> None:
        """Close idle connections."""
        self._clients.close()

    # ---- inside

    @property
    def _control(self) -> S3Client:
        return self._clients.waiting(self.config.read_timeout).boto3

    @property
    def _files(self) -> S3Client:
        return self._clients.waiting(self.config.transfer_timeout).boto3

    @property
    def _signed_control(self) -> SignedCalls:
        return self._clients.waiting(self.config.read_timeout).signed

    @property
    def _signed_files(self) -> SignedCalls:
        return self._clients.waiting(self.config.transfer_timeout).signed

    @contextmanager
    def _errors(self, key: str, *, conditional: bool = False) -> Iterator[None]:
        """Nothing above this line knows what boto3 raises."""
        try:
            yield
        except BOTO_ERRORS as error:
            # in no variable: what is raised leads to this frame, and would to itself
            raise self._meaning(error, key, conditional=conditional) from error

    def _meaning(self, error: Exception, key: str, *, conditional: bool) -> WorkerError:
        failure = translate(error, self.place, key)
        if isinstance(failure, PreconditionRefused) and not conditional:
            return StorageUnavailable(f"{self.place} refused a condition nobody made")
        return failure

    def _failure_within(self, code: str, answer: Any) -> Exception:
        """Some keys of a multi-delete failed: as if the whole request had."""
        status = {"AccessDenied": 403}.get(code, 500)
        metadata = {**answer["ResponseMetadata"], "HTTPStatusCode": status}
        response = {"Error": {"Code": code}, "ResponseMetadata": metadata}
        return translate(ClientError(cast("Any", response), "DeleteObjects"), self.place)


def _no_upload(error: ClientError) -> bool:
    """Whether there is no such upload; Ceph RGW calls it a key."""
    return error.response["Error"].get("Code") in ("NoSuchUpload", "NoSuchKey")


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _head(answer: Any) -> tuple[int, Mapping[str, str]]:
    """Status and headers of one of boto3's answers."""
    metadata = answer["ResponseMetadata"]
    return metadata["HTTPStatusCode"], metadata["HTTPHeaders"]


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # boto3 could not read a header
        raise ResponseParserError("an unreadable header") from error
