"""Bytes by key, with compare-and-swap: one contract, an S3 bucket or a folder behind it.

This module holds the contract and what a store may raise. `S3Store` and `LocalStore` in `stores`
keep it; `stores.probe` finds out what a given bucket really does.

A key is relative to the store's prefix, `/`-separated, and safe by construction: `check_key`
refuses anything that could escape, before any request is made.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from child.names import MAX_PART_BYTES, is_for_keys
from utils import WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

#: S3 keys are at most 1024 bytes of UTF-8; this leaves room for the operator's prefix.
MAX_KEY_BYTES = 900
#: S3 lists at most this many keys per request.
MAX_PAGE = 1000
#: The most bytes that `get_range` gives at a time.
MAX_RANGE = 16 << 20
#: The clocks of the machines of one store may differ by this much.
SKEW_SECONDS = 10.0


class ObjectNotFound(WorkerError):
    """No object has this key. Never raised because a store could not be reached."""

    code = "object_not_found"


class ObjectExists(WorkerError):
    """`create` found the key taken, by bytes other than the ones it brought."""

    code = "object_exists"


class ObjectChanged(WorkerError):
    """`replace` found another version than the expected one, or none."""

    code = "object_changed"


class StorageFailure(WorkerError):
    """The store did not do what was asked; each kind of failure is a subclass."""


class StorageUnavailable(StorageFailure):
    """The store did not answer, or not usefully; whether a write took place is unknown."""

    code = "storage_unavailable"
    retryable = True


class StorageMisconfigured(StorageFailure):
    """The store answered that this can never work as configured; the message says why."""

    code = "storage_misconfigured"


class InvalidKey(WorkerError):
    """A key that is absolute, escapes, is over-long or holds characters no key may hold."""

    code = "invalid_key"


class ChecksumMismatch(WorkerError):
    """A file's bytes are not those that were announced, after every retry."""

    code = "checksum_mismatch"
    retryable = True


class PresignUnsupported(WorkerError):
    """This store cannot make links: its files are read by whoever has its keys."""

    code = "presign_unsupported"


class PartsMissing(WorkerError):
    """`join_parts` found less than was announced; the message says how many bytes came."""

    code = "parts_missing"


class Stored(NamedTuple):
    """An object as it was read."""

    data: bytes
    #: Opaque; what `replace` and a conditional `get` compare. Differs whenever `data` differs.
    version: str
    #: Seconds since the Unix epoch at which it was written, by the store's clock. Always known: an
    #: answer without a time of writing is an error.
    modified: float
    #: As `age_at` tells it, by the store's clock and never by ours: workers whose clocks disagree
    #: still agree on this. None: the store did not tell the time, so the age is unknown.
    age_seconds: float | None

    @property
    def read_at(self) -> float | None:
        """When it was read, by the store's clock, as `modified` is; None: unknown."""
        return None if self.age_seconds is None else self.modified + self.age_seconds


def age_at(now: float | None, modified: float) -> float | None:
    """Seconds from `modified` to `now`, both by the store's clock and at least 0; None: unknown.

    It is unknown without a `now`, and if `modified` is still to come by more than `SKEW_SECONDS`:
    the clock was set back. A time that is not after the epoch is none; see `utils.read_time`.
    """
    if now is None or modified <= 0 or modified - now > SKEW_SECONDS:
        return None
    return max(0.0, now - modified)


class Listed(NamedTuple):
    """A row of `list`."""

    key: str
    size: int
    #: Seconds since the Unix epoch, by the store's clock.
    modified: float
    #: Opaque; differs whenever the bytes differ. Comparable with those of other rows alone. Empty:
    #: the store did not tell it.
    version: str = ""


class Page(NamedTuple):
    """Up to `MAX_PAGE` rows in key order (by UTF-8 bytes)."""

    objects: list[Listed]
    #: What to pass as `start_after` for the next page; None when this was the last.
    next: str | None


class ObjectFacts(NamedTuple):
    """An object as it was looked at, without its bytes."""

    size: int
    #: Opaque; differs whenever the object was replaced since. Only `stat` gives and knows these:
    #: a folder's are not those of `Stored`, which would take reading the whole file.
    version: str
    #: Seconds since the Unix epoch, by the store's clock.
    modified: float


class FolderPage(NamedTuple):
    """Up to `MAX_PAGE` folders in key order: as if each name had its `/`, so `a-b` before `a`."""

    names: list[str]
    #: What to pass as `start_after` for the next page, which may be empty; None: there is none.
    next: str | None


class WantedLink(NamedTuple):
    """A link to make: to what, and under which name it is saved (None: the key's own)."""

    key: str
    filename: str | None = None


#: What `presign_gets` returns. (Inside a store, `list` is a method.)
Links = list[str]


class PartLinks(NamedTuple):
    """A file that a caller sends in parts: each is PUT to its link, in any order."""

    upload_id: str
    urls: list[str]


class FileFacts(NamedTuple):
    """What a transfer saw go by: computed in the same pass as the copy."""

    size: int
    #: Lower-case hex.
    sha256: str


class Capabilities(NamedTuple):
    """What this store can be relied on for. `stores.probe` fills it in for a bucket."""

    #: create and replace are atomic. False: single-writer mode, checked by reading first.
    conditional_writes: bool
    #: presign works, and a link made by it can really be fetched.
    presign: bool
    #: Many keys can be deleted in one request.
    multi_delete: bool
    #: A link to write writes what was signed and nothing else. False: none is made.
    write_links: bool
    #: A sentence for each lack that takes something from callers, and what follows from it.
    degraded: tuple[str, ...] = ()


class StoreHealth(NamedTuple):
    """The outcome of `check`: a live round trip."""

    ok: bool
    #: For a person: what is wrong and what to change, or how the store was reached.
    message: str
    round_trip_ms: float | None
    #: Our wall clock minus the store's, in seconds; None where there is no other clock.
    clock_offset_seconds: float | None


class Store(Protocol):
    """What the rest of the worker knows of storage.

    Every method may raise `StorageUnavailable`, `StorageMisconfigured` and `InvalidKey` beside
    what it names itself. Nothing blocks the event loop. Reads and unconditional writes are
    retried inside; a conditional write never is: its outcome is settled by reading back.
    """

    #: For logs and `health`, without credentials: `s3://bucket/prefix`, `file:///data`.
    url: str

    async def capabilities(self, *, fresh: bool = False) -> Capabilities:
        """What the store can do; probed at the first call, remembered after, or anew (`fresh`)."""
        ...

    async def get(
        self, key: str, *, cached: Stored | None = None, limit: int | None = None
    ) -> Stored:
        """The object. If it still has `cached.version`, `cached` itself with its age made new.

        `limit`, without `cached`: at most that many of its first bytes; no more are fetched.

        Raises:
            ObjectNotFound: there is none.
        """
        ...

    async def stat(self, key: str) -> ObjectFacts:
        """Its size and age, without reading it. One request.

        Raises:
            ObjectNotFound: there is none.
        """
        ...

    async def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Up to `length` (1 to `MAX_RANGE`) bytes from `offset`: fewer, or none, at the end.

        Raises:
            ObjectNotFound: there is none.
        """
        ...

    async def put(self, key: str, data: bytes, *, content_type: str | None = None) -> str:
        """Write whatever was there before. Returns the new version."""
        ...

    async def create(self, key: str, data: bytes) -> str:
        """Write where nothing was. Of many concurrent callers exactly one succeeds.

        Who creates with the very bytes that are there already succeeds too: it may be their own.
        An unclear outcome (lost answer, 409, 412, 5xx) is settled by reading back: success if
        the object holds exactly `data`, so callers make `data` their own with a nonce.

        Raises:
            ObjectExists: the key is taken.
        """
        ...

    async def replace(self, key: str, data: bytes, version: str) -> str:
        """Write over exactly `version`. Unclear outcomes are settled as in `create`.

        Raises:
            ObjectChanged: another version is there, or none.
        """
        ...

    async def list(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> Page:
        """One page of what begins with `prefix`, which is empty or ends with `/`. One request.

        Rows may have keys of other origin, which `check_key` refuses. `start_after` is any text,
        `limit` is 1 to `MAX_PAGE`.
        """
        ...

    async def list_folders(
        self, prefix: str, *, start_after: str | None = None, limit: int = MAX_PAGE
    ) -> FolderPage:
        """One page of the names directly under `prefix` that have objects below them.

        `prefix` is as for `list`, `start_after` any name, there or not. One request, and
        another for each `limit` objects in a row that lie directly under `prefix` themselves.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove these, which may be as `list` gives them: of other origin. One that is not there
        is no error. Many go in as few requests as can be.
        """
        ...

    async def upload(
        self,
        file: BinaryIO,
        key: str,
        *,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """Copy a regular file into the store, whole or not at all, at constant memory.

        It is read from its beginning, wherever its position is. The caller has opened it, so that
        the file that was checked is the file that is sent, and closes it after this.
        `on_bytes(n)` is called on the event loop as n more bytes have gone.

        Raises:
            ChecksumMismatch: the file changed while it was read.
        """
        ...

    async def upload_stream(
        self,
        chunks: AsyncIterator[bytes],
        key: str,
        *,
        size: int,
        content_type: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """Write what comes, whole or not at all, with at most three parts of it in memory.

        `size` is the most that may come: up to 80 GB a part is 8 MiB, beyond that a 10,000th of
        it. `chunks` is closed, however this ends; what it raises comes out as it is.

        Raises:
            ValueError: more than `size` bytes came.
        """
        ...

    async def download(
        self,
        key: str,
        path: Path,
        *,
        expected: FileFacts | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> FileFacts:
        """Copy an object to `path`, which appears only when it is whole and verified.

        Raises:
            ObjectNotFound: there is none.
            ChecksumMismatch: it is not `expected`.
        """
        ...

    async def presign_get(self, key: str, *, expires_in: int, filename: str | None = None) -> str:
        """A link that anyone may GET for `expires_in` (1 to 604800) seconds; saved as `filename`.

        A folder's links are `file://` and do not expire.

        Raises:
            PresignUnsupported: this store has no links.
        """
        ...

    async def presign_gets(self, wanted: Sequence[WantedLink], *, expires_in: int) -> Links:
        """As `presign_get`, for many at once and in their order."""
        ...

    async def presign_put(
        self,
        key: str,
        *,
        expires_in: int,
        content_type: str | None = None,
        size: int | None = None,
        create_only: bool = False,
    ) -> str:
        """A link to which anyone may PUT; what is given here is signed and thereby enforced.

        `create_only` signs `If-None-Match: *` where the store has conditional writes, and nothing
        where it has not: a PUT must carry that header then, and 412 says that an object is there.

        Raises:
            PresignUnsupported: this store has no links to write to, or none that are safe.
        """
        ...

    async def presign_parts(
        self,
        key: str,
        *,
        size: int,
        part_size: int,
        expires_in: int,
        content_type: str | None = None,
    ) -> PartLinks:
        """Links to which anyone may PUT a file of `size` bytes in parts of exactly `part_size`.

        The last part is the rest. `part_size` is 5 MiB to 5 GiB and there are 1 to 10,000 parts,
        or ValueError. Nothing appears until `join_parts`; what is never joined is the bucket's to
        remove.

        Raises:
            PresignUnsupported: this store has no links to write to, or none that are safe.
        """
        ...

    async def join_parts(self, key: str, upload_id: str, *, size: int) -> None:
        """Make the object of the parts that came. Asks the store, and nobody else, which did.

        May be repeated: an upload that is gone while an object of that size is there was joined.

        Raises:
            PartsMissing: they do not add up to `size`, or there is no such upload.
        """
        ...

    async def check(self) -> StoreHealth:
        """Write, read and remove one small object. Never raises."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


def check_key(key: str) -> str:
    """`key` itself, if it may be used.

    Raises:
        InvalidKey: it is empty, absolute, over-long, or has an empty, `.`, `..` or over-long part,
            or a character that `child.names` escapes.
    """
    if not key or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidKey(f"a key has 1 to {MAX_KEY_BYTES} bytes")
    plain = (key.isprintable() and "\\" not in key) or all(map(is_for_keys, key))
    if not plain or not unicodedata.is_normalized("NFC", key):
        raise InvalidKey("a key holds only printable, normalised characters and no backslash")
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidKey("a key is relative, and no part of it is empty, '.' or '..'")
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise InvalidKey(f"no part of a key has more than {MAX_PART_BYTES} bytes")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself, if `list` may use it: empty, or a key with a `/` after it.

    The slash is required because `foo` would also list `foobar`.

    Raises:
        InvalidKey: it is neither.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidKey("a prefix ends with '/'")
        check_key(prefix[:-1])
    return prefix


def check_listed(key: str) -> str:
    """`key` itself, if `list` may give it and a request can name it without leading elsewhere.

    Raises:
        InvalidKey: it cannot be; some clients and proxies resolve `.` and `..` in a URL.
    """
    if not key or not {".", ".."}.isdisjoint(key.split("/")):
        raise InvalidKey("no part of a key is '.' or '..': remove it with the store's own tools")
    return key


def check_range(offset: int, length: int) -> None:
    """Raises ValueError if `get_range` takes no such."""
    if offset < 0 or not 1 <= length <= MAX_RANGE:
        raise ValueError(f"a range has an offset of 0 or more and 1 to {MAX_RANGE} bytes")
