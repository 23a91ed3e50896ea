"""One S3 request per call: blocking, thread-safe, never retried, every failure typed.

What to retry, and what an unclear answer means, is for the callers: only they know what is safe.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from boto3.session import Session
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from storage import (
    ObjectNotFound,
    Page,
    StorageUnavailable,
)
from stores.s3_client import new_client, new_session
from stores.s3_errors import BOTO_ERRORS, PreconditionRefused, translate
from stores.s3_files import Body, Stop
from stores.s3_headers import (
    byte_range,
    extent_of,
    facts_of,
    offset_from,
    still,
    stored_of,
    version_of,
)
from stores.s3_wire import Wire
from utils import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Literal

    from mypy_boto3_s3 import S3Client

    from storage import ObjectFacts, Stored
    from stores.s3_client import S3Config
    from stores.s3_connections import Head
    from stores.s3_files import Memory
    from worker.meter import Meter


#: Bytes that are passed on at a time while they come: few enough to be still in a core's cache.
BITE = 256 << 10


class Range(NamedTuple):
    """A stretch of an object."""

    data: memoryview
    version: str
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


class S3Requests:
    """The bucket, by full keys (the operator's prefix included)."""

    def __init__(self, config: S3Config, meter: Meter) -> None:
        self.config = config
        self._meter = meter
        self.place = config.place
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._clients: dict[float, S3Client] = {}
        self._wires: dict[float, Wire] = {}

    @property
    def _control(self) -> S3Client:
        return self._client(self.config.read_timeout)

    @property
    def _files(self) -> S3Client:
        return self._client(self.config.transfer_timeout)

    @property
    def _control_wire(self) -> Wire:
        return self._wire(self.config.read_timeout)

    @property
    def _file_wire(self) -> Wire:
        return self._wire(self.config.transfer_timeout)

    def get(self, key: str, cached: Stored | None = None) -> Stored:
        """The object; `cached` itself, its age made new, if it is still that."""
        condition = {"If-None-Match": cached.version} if cached else {}
        with self._errors(key):
            try:
                (_, headers), data = self._control_wire.read(key, condition)
            except ClientError as error:
                if cached is None or _status(error) != 304:
                    raise
                return still(cached, error.response["ResponseMetadata"]["HTTPHeaders"])
            self._meter.moved("down", len(data))
            return stored_of(data, headers)

    def get_start(self, key: str, limit: int) -> Stored:
        """The first `limit` bytes of an object. Two requests for an empty one."""
        body = BytesIO()

        def begin(head: Head) -> Callable[[bytes], object]:
            extent_of(head, 0, limit)  # before a store that ignores the range sends all
            return body.write

        with self._errors(key):
            try:
                head = self._control_wire.get(key, byte_range(0, limit), begin)
            except ClientError as error:
                if _status(error) != 416:
                    raise
                # an empty object has no first byte, and some stores say so
                head = self._control_wire.get(key, {}, begin)
            self._meter.moved("down", body.tell())
            return stored_of(body.getvalue(), head.headers)

    def stat(self, key: str) -> ObjectFacts:
        """All but the bytes. Two requests for an object that is not there."""
        with self._errors(key):
            client = self._control
            try:
                answer = client.head_object(Bucket=self.config.bucket, Key=key)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                # HEAD has no body to say so, but it may be the bucket that is not there
                client.list_objects_v2(Bucket=self.config.bucket, Prefix=key, MaxKeys=1)
                raise ObjectNotFound(f"there is no object {key!r}") from None
            except ValueError as error:  # what botocore makes of a header that it cannot read
                raise ResponseParserError("an unreadable header") from error
            return facts_of(answer["ResponseMetadata"]["HTTPHeaders"])

    def put(self, key: str, data: bytes, content_type: str | None = None) -> str:
        """Write, whatever is there. Returns the version."""
        body = Body(memoryview(data), Stop())
        with self._errors(key):
            tag = self._control_wire.put(
                "PutObject", key, body, content_type=content_type, sha256=body.sha256()
            )
            return version_of(tag)

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Write over exactly `version`; None: where nothing is. Returns the new version.

        Raises:
            PreconditionRefused, ObjectNotFound: it is not so, or our own write made it so.
        """
        condition = {"If-None-Match": "*"} if version is None else {"If-Match": version}
        body = Body(memoryview(data), Stop(), once=True)
        with self._errors(key, conditional=True):
            tag = self._control_wire.put(
                "PutObject", key, body, condition=condition, sha256=body.sha256()
            )
            return version_of(tag)

    def list(self, prefix: str, start_after: str | None, limit: int) -> Page:
        """One page, by full keys."""
        with self._errors(prefix):
            rows, more = self._control_wire.list(prefix, start_after, limit)
            return Page(rows, rows[-1].key if rows and more else None)

    def list_folders(self, prefix: str, after: str | None, limit: int) -> FoldersPage:
        """One page of what lies directly under `prefix`, which may hold no folders."""
        start = {"StartAfter": after} if after else {}
        with self._errors(prefix):
            answer = self._control.list_objects_v2(
                Bucket=self.config.bucket,
                Prefix=prefix,
                Delimiter="/",
                MaxKeys=limit,
                **cast("Any", start),
            )
            folders = [row["Prefix"] for row in answer.get("CommonPrefixes", [])]
            objects = [row["Key"] for row in answer.get("Contents", [])]
        names = [folder[len(prefix) : -1] for folder in folders]
        last = max([*folders, *objects], default=None) if answer.get("IsTruncated") else None
        return FoldersPage(names, last)

    def delete(self, key: str) -> None:
        """Remove one object, there or not."""
        with self._errors(key):
            self._control.delete_object(Bucket=self.config.bucket, Key=key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove up to 1000 objects, there or not, in one request."""
        with self._errors(keys[0]):
            answer = self._control.delete_objects(
                Bucket=self.config.bucket,
                Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
            )
        for failed in answer.get("Errors", []):
            if failed.get("Code") != "NoSuchKey":
                raise self._failure_within(failed.get("Code", ""), answer)

    def link(self, key: str, seconds: int, query: Mapping[str, str]) -> str:
        """To read it; `query` as S3 names it. Asks the store nothing."""
        with self._errors(key):
            return self._control_wire.link(key, seconds, query)

    def presign(
        self,
        operation: Literal["put_object", "upload_part"],
        params: dict[str, Any],
        seconds: int,
    ) -> str:
        """A link to write by. Makes no request."""
        with self._errors(params["Key"]):
            return self._control.generate_presigned_url(
                operation, Params={"Bucket": self.config.bucket, **params}, ExpiresIn=seconds
            )

    def clock_offset(self) -> float | None:
        """Our clock minus the store's, in seconds. One request."""
        with self._errors(""):
            answer = self._control.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1)
        return offset_from(answer["ResponseMetadata"]["HTTPHeaders"])

    # ---- files

    def put_file(self, key: str, body: Body, content_type: str | None, sha256: str) -> None:
        """Write a file that fits into one request."""
        with self._errors(key):
            self._file_wire.put("PutObject", key, body, content_type=content_type, sha256=sha256)

    def begin_upload(self, key: str, content_type: str | None, mark: str) -> str:
        """Returns the id of a multipart upload, whose object will carry `mark`."""
        typed = {"ContentType": content_type} if content_type else {}
        with self._errors(key):
            answer = self._files.create_multipart_upload(
                Bucket=self.config.bucket, Key=key, Metadata={"upload": mark}, **cast("Any", typed)
            )
            return answer["UploadId"]

    def upload_part(self, key: str, upload_id: str, number: int, body: Body) -> str:
        """Returns the part's tag, to be told to `complete_upload`."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        with self._errors(key):
            return self._file_wire.put("UploadPart", key, body, query=query)

    def parts(self, key: str, upload_id: str, after: int) -> PartsPage | None:
        """Up to 1000 parts with numbers above `after`; None: there is no such upload."""
        with self._errors(key):
            try:
                answer = self._control.list_parts(
                    Bucket=self.config.bucket, Key=key, UploadId=upload_id, PartNumberMarker=after
                )
            except ClientError as error:
                # Ceph RGW calls it a key
                if error.response["Error"].get("Code") not in ("NoSuchUpload", "NoSuchKey"):
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
                Bucket=self.config.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": cast("Any", parts)},
            )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw the parts away."""
        with self._errors(key):
            self._control.abort_multipart_upload(
                Bucket=self.config.bucket, Key=key, UploadId=upload_id
            )

    def mark(self, key: str) -> str | None:
        """What `begin_upload` marked the object with; None if it was not written that way."""
        with self._errors(key):
            answer = self._control.head_object(Bucket=self.config.bucket, Key=key)
        return answer["Metadata"].get("upload")

    def get_range(
        self,
        key: str,
        offset: int,
        length: int,
        version: str | None,
        stop: Stop,
        memory: Memory,
        on_bite: Callable[[memoryview, int], object] | None = None,
    ) -> Range:
        """Up to `length` bytes from `offset` of exactly `version`, if it is given.

        `on_bite` is given each bite of them as it comes, and where in the object it begins.

        Raises:
            PreconditionRefused: another version is there.
            StorageUnavailable: also when it was stopped, or other bytes came.
        """
        condition = {"If-Match": version} if version else {}
        extent = partial(extent_of, offset=offset, length=length)
        taken = _Taken(extent, stop, memory, offset, on_bite)
        with self._errors(key, conditional=True):
            try:
                head = self._file_wire.get(key, byte_range(offset, length) | condition, taken.begin)
            except ClientError as error:
                if _status(error) != 416 or offset:
                    raise
                # an empty object has no first byte, and some stores say so
                head = self._file_wire.get(key, {}, taken.begin)
            finally:
                self._meter.moved("down", taken.filled)
            return Range(taken.data, version_of(head.headers.get("etag")), taken.total)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; none at the end or beyond it."""
        body = BytesIO()

        def begin(head: Head) -> Callable[[bytes], object]:
            extent_of(head, offset, length)  # before a store that ignores the range sends all
            return body.write

        with self._errors(key):
            try:
                self._file_wire.get(key, byte_range(offset, length), begin)
            except ClientError as error:
                if _status(error) != 416:
                    raise
                return b""
            self._meter.moved("down", body.tell())
            return body.getvalue()

    def close(self) -> None:
        """Let go of connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            for wire in self._wires.values():
                wire.close()
            self._clients.clear()
            self._wires.clear()

    # ---- inside

    def _client(self, read_timeout: float) -> S3Client:
        """A client per purpose, made at the first use: that takes 0.1 s, so never on the loop."""
        with self._lock:
            return self._made_client(read_timeout)

    def _wire(self, read_timeout: float) -> Wire:
        """A client's."""
        with self._lock:
            if read_timeout not in self._wires:
                client = self._made_client(read_timeout)
                credentials = cast("Session", self._session).get_credentials()
                if credentials is None:  # looked for anew the next time, by clients too
                    self._session = None
                    self._clients.clear()
                self._wires[read_timeout] = Wire(client, credentials, self.config.bucket)
            return self._wires[read_timeout]

    def _made_client(self, read_timeout: float) -> S3Client:
        if read_timeout not in self._clients:
            self._session = self._session or new_session(self.config)
            self._clients[read_timeout] = new_client(
                self._session, self.config, read_timeout, self._meter
            )
        return self._clients[read_timeout]

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


class _Taken:
    """A stretch of an object as it comes."""

    def __init__(
        self,
        extent: Callable[[Head], tuple[int, int]],
        stop: Stop,
        memory: Memory,
        offset: int,
        on_bite: Callable[[memoryview, int], object] | None,
    ) -> None:
        self._extent = extent
        self._stop = stop
        self._memory = memory
        self._offset = offset
        self._on_bite = on_bite
        self._bitten = 0
        #: Bytes that have come.
        self.filled = 0

    def begin(self, head: Head) -> Callable[[bytes], None]:
        """Raises ResponseParserError if other bytes come than those asked for."""
        size, self.total = self._extent(head)
        self.data = self._memory.lend(size)
        return self._take

    def _take(self, chunk: bytes) -> None:
        self._stop.check()
        end = self.filled + len(chunk)
        if end > len(self.data):
            raise ResponseParserError("more bytes come than were told")
        self.data[self.filled : end] = chunk
        self.filled = end
        if self._on_bite and (end - self._bitten >= BITE or end == len(self.data)):
            self._on_bite(self.data[self._bitten : end], self._offset + self._bitten)
            self._bitten = end


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
