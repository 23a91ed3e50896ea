"""Tries what the holder of a link can do: read by it, and write by it more than was signed.

The holder of a link chooses the headers that the link does not sign. AWS refuses every unsigned
`x-amz-*` header; Ceph RGW heeds them all, so that a link for an empty file copies any object that
the worker's key may read. The rule: a store gives links to write to only if no unsigned header

- puts other bytes into an object or a part than the holder sent (`x-amz-copy-source`), or
- opens an object to others (`x-amz-acl`, `x-amz-grant-*`),

and the signed size binds. Metadata, tags, storage class, redirects, locks and the holder's own
encryption key are no lack: they describe the one object that the holder writes anyway. They may
make it one that the store refuses to give or to remove; the worker logs that and goes on. The
status of an answer proves nothing, so the probe reads what the store holds afterwards.
"""

from __future__ import annotations

import os
import ssl
from concurrent.futures import wait
from contextlib import suppress
from enum import Enum
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import httpx

from storage import ObjectNotFound, StorageMisconfigured, StorageUnavailable
from stores.s3 import links
from stores.s3.threads import patiently
from utils import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from stores.s3.bucket import Bucket
    from stores.s3.client import S3Config

#: Lifetime of the probe's links, in seconds.
LIFE = 60
#: An object to copy, the stretch of it that is copied, and a body to send: no two of one length.
SOURCE, STRETCH, SENT = b"another object's bytes", "bytes=0-6", b"sent"
_EVERYBODY = 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'
#: Each opens an object to everybody.
OPENING = (
    {"x-amz-acl": "public-read"},
    {"x-amz-grant-read": _EVERYBODY},
    {"x-amz-grant-full-control": _EVERYBODY},
    {"x-amz-grant-write-acp": _EVERYBODY},
)
CHUNKED = {"Transfer-Encoding": "chunked"}


class WriteLinks(Enum):
    """What a store does with links to write."""

    SAFE = "write what was signed and nothing else"
    REFUSED = "do not work"
    UNSAFE = "write more than was signed"
    UNPROVEN = "work, but the store only fails when asked for more than was signed"


class _Form(NamedTuple):
    """A link to write by, as the worker gives them."""

    size: int
    content_type: str | None = None
    create_only: bool = False

    @property
    def headers(self) -> dict[str, str]:
        typed = {"Content-Type": self.content_type} if self.content_type else {}
        return typed | ({"If-None-Match": "*"} if self.create_only else {})


class LinkProbe:
    """Uses links as a client without keys does. Blocking."""

    def __init__(
        self, bucket: Bucket, patience: float, pool: Executor, key: Callable[[str], str]
    ) -> None:
        """`key` gives the full key of a name, and clears it up in the end."""
        self._bucket = bucket
        self._patience = patience
        self._pool = pool
        self._key = key
        self._http = _client(bucket.config)

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def can_be_read(self, key: str, data: bytes) -> bool:
        """Whether a link to the object gives its bytes."""
        url = self._bucket.link(key, LIFE, {})
        return patiently(partial(self._fetch, url), self._patience) == data

    def try_writing(self, *, create_only: bool) -> WriteLinks:
        """Whether links to write work, and their holders can do no more by them.

        `create_only`: whether the links to files sign `If-None-Match`.

        Raises:
            StorageUnavailable: the store failed on the way, also at a plain link; nothing is known.
        """
        source = self._key("source")
        patiently(partial(self._bucket.put, source, SOURCE), self._patience)
        file, cancel = _Form(len(SENT), "text/plain", create_only), _Form(0)
        if not self._is_written("file", file):
            return WriteLinks.REFUSED
        copying = _copying(self._bucket.config.bucket, source)
        forms = [(file, SENT), (file._replace(size=0), b""), (cancel, b"")]
        tries: list[Callable[[], bool]] = [
            partial(self._keeps, f"copy-{number}", form, body, added)
            for number, ((form, body), added) in enumerate(product(forms, copying))
        ]
        tries += [
            partial(self._keeps, "longer", cancel, SENT, {}),
            partial(self._keeps, "shorter", file, SENT[:-1], {}),
            partial(self._keeps, "chunked", file, SENT + SENT, CHUNKED),
            self._parts_keep,
        ]
        tries += [
            partial(self._stays_closed, f"opened-{number}", file, added)
            for number, added in enumerate(OPENING)
        ]
        trying = [self._pool.submit(self._proves, each) for each in tries]
        wait(trying)  # all of them: what is cleared up afterwards is to stay away
        proven = [each.result() for each in trying]
        if False in proven:
            return WriteLinks.UNSAFE
        if None not in proven:
            return WriteLinks.SAFE
        if not self._is_written("again", file):  # else the store is away, and this raises
            raise StorageUnavailable("the store takes no link any more that it took before")
        return WriteLinks.UNPROVEN

    def _proves(self, attempt: Callable[[], bool]) -> bool | None:
        """None: the store answers the attempt with nothing but failures."""
        try:
            return patiently(attempt, self._patience)
        except StorageUnavailable:
            return None

    # ---- attempts

    def _is_written(self, name: str, form: _Form) -> bool:
        key = self._key(name)
        url = self._link(key, form)

        def write() -> bytes | None:
            self._put(url, SENT, form.headers)
            return self._found(key)

        return patiently(write, self._patience) == SENT

    def _keeps(self, name: str, form: _Form, body: bytes, added: Mapping[str, str]) -> bool:
        """Whether a request by the link writes its body or nothing; nothing if it is too long."""
        key = self._key(name)
        self._put(self._link(key, form), body, {**form.headers, **added})
        found = self._found(key)
        return found is None or (found == body and len(body) == form.size)

    def _stays_closed(self, name: str, form: _Form, added: Mapping[str, str]) -> bool:
        """Whether the object is no more open than one that was written without `added`."""
        url, plain = (self._link(self._key(each), form) for each in (name, "file"))
        self._put(url, SENT, {**form.headers, **added})
        return not self._is_open(_bare(url)) or self._is_open(_bare(plain))

    def _is_open(self, url: str) -> bool:
        """Whether everybody can read an object, or can open it first."""
        if self._fetch(url) is None:
            self._put(f"{url}?acl", b"", {"x-amz-acl": "public-read"})
        return self._fetch(url) is not None

    def _parts_keep(self) -> bool:
        """Whether parts have just the bytes that were sent: by their sizes, which all differ."""
        key = self._key("parts")
        try:
            upload_id = self._bucket.begin_upload(key, None, "probe")
        except StorageMisconfigured:
            return True  # a file in parts cannot be begun, so there are no links to parts
        try:
            return self._parts_of_keep(key, upload_id)
        finally:
            with suppress(WorkerError):
                self._bucket.abort_upload(key, upload_id)

    def _parts_of_keep(self, key: str, upload_id: str) -> bool:
        copying = _copying(self._bucket.config.bucket, self._key("source"))
        sent = [*product((b"", SENT), copying)]
        sizes = [len(body) for body, _ in sent]
        urls = links.links_to_parts(self._bucket, key, upload_id, sizes, LIFE)
        for url, (body, added) in zip(urls, sent, strict=True):
            self._put(url, body, added)
        page = self._bucket.parts(key, upload_id, 0)
        return page is None or all(part.size == sizes[part.number - 1] for part in page.parts)

    # ---- requests

    def _link(self, key: str, form: _Form) -> str:
        return links.link_to_write(self._bucket, key, LIFE, **form._asdict())

    def _found(self, key: str) -> bytes | None:
        try:
            return self._bucket.get(key).data
        except ObjectNotFound:
            return None

    def _put(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        # httpx sends an iterator in chunks, without its length
        content = iter([body]) if CHUNKED.items() <= headers.items() else body
        self._send("PUT", url, content=content, headers={**headers})

    def _fetch(self, url: str) -> bytes | None:
        """None: the store does not honour it."""
        answer = self._send("GET", url)
        return answer.content if answer is not None and answer.is_success else None

    def _send(self, method: str, url: str, **options: object) -> httpx.Response | None:
        """The store's answer; None: it is not known to be the store."""
        try:
            answer = self._http.request(method, url, **options)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return None
            # 'from None': what httpx says holds the link
            raise StorageUnavailable("the store broke off while a link was used") from None
        if answer.status_code == 429 or (answer.status_code >= 500 and answer.status_code != 501):
            raise StorageUnavailable(f"the store answered {answer.status_code} to a link")
        return answer


def _copying(bucket: str, key: str) -> list[dict[str, str]]:
    """Headers that have a store copy the object, in the spellings that stores understand.

    Ceph RGW takes `_` for `-`, so that a proxy before it which refuses the first lets the last by.
    """
    source = quote(f"/{bucket}/{key}")
    return [
        {"x-amz-copy-source": source},
        {"x-amz-copy-source": source, "x-amz-copy-source-range": STRETCH},
        {"x_amz_copy_source": source},
    ]


def _bare(url: str) -> str:
    return url.partition("?")[0]


def _client(config: S3Config) -> httpx.Client:
    bundle = config.tls_bundle or os.environ.get("AWS_CA_BUNDLE")
    try:
        trusted = ssl.create_default_context(cafile=bundle) if bundle else True
    except OSError:
        raise StorageMisconfigured(
            "S3_TLS_BUNDLE (or AWS_CA_BUNDLE) is not a file with certificates that can be read"
        ) from None
    return httpx.Client(
        timeout=httpx.Timeout(config.read_timeout, connect=config.connect_timeout),
        verify=trusted,
        follow_redirects=True,
    )
