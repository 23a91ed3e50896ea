"""The requests that `signed_calls` makes in boto3's place: the same, and read as carefully."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socketserver
import threading
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3

from storage import FileFacts, StorageUnavailable, Stored, Wanted
from stores.s3.client import Clients, S3Config
from stores.s3.files import PART, SMALL
from stores.s3.links import attachment
from stores.s3.near_end import Digest, Target
from stores.s3.stopping import Stop
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, FaultyS3
from tests.servers import upload_file
from worker.meter import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from stores.s3.client import Client
    from tests.servers import S3Server


@pytest.fixture
async def store(ceph: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    store = S3Store(**ceph.place() | {"endpoint_url": proxy.url}, retry_seconds=1.0)  # type: ignore[arg-type]
    yield store
    await store.close()


def a_file(folder: Path, size: int) -> tuple[Path, FileFacts]:
    data = os.urandom(size)
    path = folder / "file"
    path.write_bytes(data)
    return path, FileFacts(size, hashlib.sha256(data).hexdigest())


# ---- where, and links


PLACES: list[dict[str, Any]] = [
    {"endpoint_url": "http://127.0.0.1:1", "region": "us-east-1", "addressing_style": "path"},
    {"endpoint_url": "https://s3.example.com", "region": "eu-central-1"},
    {"region": "eu-central-1", "addressing_style": "virtual"},
    {"region": "us-east-1", "session_token": "a+b/c="},
]


@contextmanager
def client_of(bucket: str, place: dict[str, Any]) -> Iterator[Client]:
    """boto3's client, and the signed calls beside it."""
    config = S3Config(bucket=bucket, access_key_id="A/B", secret_access_key="secret", **place)
    with closing(Clients(config, Meter())) as clients:
        yield clients.waiting(5.0)


class Sent(Exception):
    """Instead of being sent."""

    def __init__(self, url: str, authorization: str) -> None:
        scope = re.search(r"Credential=A/B/\d+/([^,]+),", authorization)
        assert scope
        self.where = url, scope[1]


def not_sent_by_boto3(request: Any, **_: object) -> None:
    raise Sent(request.url, str(request.headers["Authorization"]))


def not_sent_by_urllib3(
    pool: urllib3.HTTPConnectionPool, method: str, url: str, *, headers: Any, **_: object
) -> None:
    port = f":{pool.port}" if pool.port not in (80, 443) else ""
    raise Sent(f"{pool.scheme}://{pool.host}{port}{url}", headers["Authorization"])


@pytest.mark.parametrize(
    "place",
    [
        *PLACES,
        {"region": "eu-central-1"},
        {"region": "ap-east-1", "addressing_style": "path"},
        {"region": "cn-north-1"},
        {"region": None},
        {
            "endpoint_url": "https://example.com/base",
            "region": "us-east-1",
            "addressing_style": "path",
        },
    ],
)
@pytest.mark.parametrize("bucket", ["pail", "a.pail"])
def test_a_file_is_sent_where_botocore_would_send_it(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any], bucket: str
) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)

    with client_of(bucket, place) as client:
        client.boto3.meta.events.register("before-send.s3", not_sent_by_boto3)
        with pytest.raises(Sent) as theirs:
            client.boto3.put_object(Bucket=bucket, Key="a b/ä", Body=b"1")
        monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", not_sent_by_urllib3)
        with pytest.raises(Sent) as ours:
            client.signed.put_object("a b/ä", b"1", None, hashlib.sha256(b"1").hexdigest(), Stop())
    assert ours.value.where == theirs.value.where


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["k", "a/b c/d+e~f", "a=b&c?d#e%f", "ä/日本/'(*)!"])
@pytest.mark.parametrize("filename", [None, 'a "b" ä.png'])
def test_a_link_is_the_one_that_botocore_makes(
    place: dict[str, Any], key: str, filename: str | None
) -> None:
    with client_of("pail", place) as client:
        params, query = {"Bucket": "pail", "Key": key}, {}
        if filename:
            params["ResponseContentDisposition"] = attachment(filename)
            query["response-content-disposition"] = attachment(filename)
        while True:  # until both were made in the same second
            theirs = client.boto3.generate_presigned_url("get_object", Params=params, ExpiresIn=60)
            ours = client.signed.link(key, 60, query)
            dates = [parse_qs(urlsplit(link).query)["X-Amz-Date"] for link in (theirs, ours)]
            if dates[0] == dates[1]:
                break
    assert ours == theirs


# ---- files


@pytest.mark.parametrize(
    ("size", "requests"),
    [
        (0, 1),
        (1, 1),
        (SMALL, 1),
        (SMALL + 1, 1),
        (PART, 1),
        (PART + 1, 4),
        (2 * PART, 4),
    ],
)
async def test_a_file_goes_up_in_as_few_requests_as_it_takes_and_comes_back(
    store: S3Store, proxy: FaultyS3, tmp_path: Path, size: int, requests: int
) -> None:
    path, facts = a_file(tmp_path, size)
    told: list[int] = []
    assert await upload_file(store, path, "a", on_bytes=told.append) == facts
    assert len(proxy.asked) == requests
    assert sum(told) == size
    told.clear()
    back = tmp_path / "back"
    assert await store.download("a", back, expected=facts, on_bytes=told.append) == facts
    assert back.read_bytes() == path.read_bytes()
    assert sum(told) == size


@pytest.mark.parametrize("size", [1000, PART + 1000], ids=["small", "in parts"])
async def test_bytes_that_were_damaged_on_their_way_are_sent_again(
    store: S3Store, proxy: FaultyS3, tmp_path: Path, size: int
) -> None:
    path, facts = a_file(tmp_path, size)
    left = [1]

    def damage_once(body: bytes) -> bytes:
        return bytes([body[0] ^ left.pop()]) + body[1:] if left and len(body) >= 1000 else body

    proxy.damage = damage_once
    await upload_file(store, path, "a")
    assert not left
    assert 400 in [status for _, status in proxy.done]
    assert await store.download("a", tmp_path / "back") == facts


@pytest.mark.parametrize("size", [1000, 2 * PART + 1000], ids=["small", "in parts"])
async def test_files_pass_over_tls(ceph: S3Server, tmp_path: Path, size: int) -> None:
    place = ceph.place() | {"endpoint_url": ceph.tls_url, "tls_bundle": str(ceph.certificate)}
    store = S3Store(**place)  # type: ignore[arg-type]
    path, facts = a_file(tmp_path, size)
    assert await upload_file(store, path, "a", content_type="image/png") == facts
    assert await store.download("a", tmp_path / "back", expected=facts) == facts
    await store.close()


async def test_temporary_credentials_are_sent_with_their_token(
    ceph: S3Server, proxy: FaultyS3, tmp_path: Path
) -> None:
    proxy.rule = lambda _: Answer(200, headers=(("ETag", '"x"'),))
    place = ceph.place() | {"endpoint_url": proxy.url, "session_token": "token"}
    store = S3Store(**place)  # type: ignore[arg-type]
    await upload_file(store, a_file(tmp_path, 10)[0], "a")
    await store.close()
    (asked,) = proxy.asked
    assert asked.headers["x-amz-security-token"] == "token"
    assert "x-amz-security-token" in asked.headers["authorization"]  # signed, too


async def test_a_file_has_the_type_that_it_was_given(
    store: S3Store, proxy: FaultyS3, tmp_path: Path
) -> None:
    await upload_file(store, a_file(tmp_path, 10)[0], "a", content_type="image/png")
    (asked,) = proxy.asked
    assert asked.headers["content-type"] == "image/png"


async def test_a_link_in_a_batch_is_for_its_own_file(store: S3Store, tmp_path: Path) -> None:
    links = await store.presign_gets([Wanted("a", None), Wanted("b", "b.png")], expires_in=60)
    assert [urlsplit(link).path.rpartition("/")[2] for link in links] == ["a", "b"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 5-14/60"},
        {"Content-Range": "bytes 0-9/5"},
        {"Content-Range": "bytes 0-9/*"},
        {"Content-Range": "bytes 0-9/60"},  # less than what was asked for
        {},  # all of an object that is larger
    ],
)
async def test_bytes_that_were_not_asked_for_are_not_taken(
    store: S3Store, proxy: FaultyS3, headers: dict[str, str]
) -> None:
    proxy.rule = lambda _: Answer(
        206, bytes(10 if headers else 30), tuple(({"ETag": '"x"'} | headers).items())
    )
    fetch = partial(store._bucket.get_range, "a", 0, 20, None, Stop())
    with pytest.raises(StorageUnavailable):
        await asyncio.to_thread(fetch)


def test_a_thread_that_comes_late_makes_no_file(tmp_path: Path) -> None:
    late, later = Target(tmp_path / "a", Digest()), Target(tmp_path / "b", Digest())
    later.write([b"1"])
    for target in (late, later):
        target.discard()
    with pytest.raises(StorageUnavailable, match="stopped"):
        late.write([b"1"])
    with pytest.raises(StorageUnavailable, match="stopped"):
        later.appear(None)
    assert list(tmp_path.iterdir()) == []


# ---- records


async def test_a_condition_is_signed(store: S3Store, proxy: FaultyS3) -> None:
    version = await store.create("a", b"1")
    await store.replace("a", b"2", version)
    create, replace = (asked for asked in proxy.asked if asked.path.endswith("/a"))
    assert (create.headers["if-none-match"], replace.headers["if-match"]) == ("*", version)
    assert "if-none-match" in create.headers["authorization"]
    assert "if-match" in replace.headers["authorization"]


async def test_an_unchanged_record_is_known_though_its_length_is_told(ceph: S3Server) -> None:
    """RFC 9110, 8.6: a 304 has no body and may say how long the object is; some stores do."""
    with a_server(
        b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 1234\r\n'
        b"Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n"
    ) as url:
        store = S3Store(**ceph.place() | {"endpoint_url": url}, retry_seconds=1.0)  # type: ignore[arg-type]
        cached = Stored(b"1", "x", 0.0, 0.0)
        assert (await store.get("a", cached=cached)).data == b"1"
        await store.close()


@pytest.mark.parametrize("modified", ["garbage", "0 -0000"])
async def test_a_record_without_a_time_is_not_a_wrong_setting(
    store: S3Store, proxy: FaultyS3, modified: str
) -> None:
    proxy.rule = lambda _: Answer(200, b"1", (("ETag", '"x"'), ("Last-Modified", modified)))
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.get("a")


@contextmanager
def a_server(answer: bytes) -> Iterator[str]:
    """That says the same to everybody, byte by byte."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# ---- lists


ODD_KEYS = ["a b", "a%20b", "a&b", "a+b", "a<b>", "a~b", "d+&/e", "ä/日本"]


async def test_a_list_has_the_keys_as_they_are(store: S3Store) -> None:
    for key in ODD_KEYS:
        await store.put(key, b"12")
    rows = (await store.list("")).objects
    assert [(row.key, row.size) for row in rows] == [(key, 2) for key in sorted(ODD_KEYS)]
    assert [row.key for row in (await store.list("d+&/")).objects] == ["d+&/e"]
    page = await store.list("", start_after="a b", limit=1)
    assert ([row.key for row in page.objects], page.next) == (["a%20b"], "a%20b")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>Sign in to the hotel's network</html>",
        b"<ListBucketResult><Conten",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
    ],
)
async def test_an_answer_that_is_no_list_is_not_an_empty_one(
    store: S3Store, proxy: FaultyS3, answer: bytes
) -> None:
    proxy.rule = lambda _: Answer(200, answer)
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.list("")


@pytest.mark.parametrize(
    "answer",
    [
        b'<ListBucketResult xmlns="u"><Contents xmlns="">%s</Contents></ListBucketResult>',
        b'<s:ListBucketResult xmlns:s="u"><Contents>%s</Contents></s:ListBucketResult>',
        b'<?xml version="1.0" encoding="odd"?><ListBucketResult><Contents>%s</Contents>'
        b"</ListBucketResult>",
    ],
)
async def test_a_list_is_read_whatever_its_names_and_letters_are_said_to_be(
    store: S3Store, proxy: FaultyS3, answer: bytes
) -> None:
    key = f"{store.url.partition('//')[2].partition('/')[2]}a"
    row = f"<Key>{key}</Key><Size>1</Size><ETag>e</ETag>"
    row += "<LastModified>2026-01-01T00:00:00Z</LastModified>"
    proxy.rule = lambda _: Answer(200, answer % row.encode())
    assert [row.key for row in (await store.list("")).objects] == ["a"]


async def test_a_failure_that_comes_as_a_success_is_one(store: S3Store, proxy: FaultyS3) -> None:
    proxy.rule = lambda _: Answer(200, b"<Error><Code>SlowDown</Code></Error>")
    with pytest.raises(StorageUnavailable, match="SlowDown, which should pass"):
        await store.list("")


async def test_an_answer_that_s3_never_gives_is_typed(store: S3Store, proxy: FaultyS3) -> None:
    proxy.rule = lambda _: Answer(300, b"<p>choose one</p>")
    with pytest.raises(StorageUnavailable, match="answered 300"):
        await store.list("")
