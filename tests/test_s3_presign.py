"""Links on a real server: what they allow, and everything they do not.

On Ceph RGW behind AWS's rule about unsigned headers: moto checks neither signatures nor expiry.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

from storage import ObjectNotFound, PartsMissing
from tests import servers
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storage import Store
    from tests.servers import Place, S3Server

PART = 5 << 20

pytestmark = pytest.mark.parametrize("place", ["strict"], indirect=True)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def test_a_link_works_until_it_expires(store: Store, http: httpx.AsyncClient) -> None:
    await store.put("a", b"123")
    url = await store.presign_get("a", expires_in=5)
    assert (await http.get(url)).content == b"123"
    async with asyncio.timeout(PATIENCE):
        # The server's clock gives no signal, so ask it again and again.
        while (answer := await http.get(url)).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("genuine", "forged"),
    [
        ("/mine?", "/others?"),
        ("X-Amz-Expires=60", "X-Amz-Expires=604800"),
        ("X-Amz-Signature=", "X-Amz-Signature=0"),
        ("tester-access-key", "other-access-key"),
        ("one.txt", "two.txt"),
        ("&X-Amz-Signature", "&response-content-type=text%2Fhtml&X-Amz-Signature"),
        ("&X-Amz-Signature", "&acl&X-Amz-Signature"),
    ],
    ids=[
        "other key",
        "longer life",
        "other signature",
        "other user",
        "other name",
        "other type",
        "another question",
    ],
)
async def test_a_tampered_link_is_refused(
    store: Store, http: httpx.AsyncClient, genuine: str, forged: str
) -> None:
    await store.put("mine", b"123")
    await store.put("others", b"456")
    url = await store.presign_get("mine", expires_in=60, filename="one.txt")
    assert (await http.get(url)).status_code == 200
    assert genuine in url
    assert (await http.get(url.replace(genuine, forged))).status_code == 403


async def test_a_link_by_another_user_is_refused(
    store: Store, place: Place, ceph: S3Server, http: httpx.AsyncClient
) -> None:
    assert ceph.other is not None
    await store.put("a", b"123")
    stranger = servers.open_place({**place, **ceph.other._asdict()})
    assert not (await stranger.check()).ok
    await stranger.close()
    with closing(servers.client(ceph.endpoint_url, ceph.other)) as s3:
        params = {"Bucket": ceph.bucket, "Key": f"{place['prefix']}/a"}
        url = s3.generate_presigned_url("get_object", params, ExpiresIn=60)
    assert (await http.get(url)).status_code == 403


async def test_without_a_link_there_is_nothing(store: Store, http: httpx.AsyncClient) -> None:
    await store.put("a", b"123")
    url = await store.presign_get("a", expires_in=60)
    assert (await http.get(url.partition("?")[0])).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
async def test_a_link_to_read_only_reads(
    store: Store, http: httpx.AsyncClient, method: str
) -> None:
    await store.put("a", b"123")
    url = await store.presign_get("a", expires_in=60)
    assert (await http.request(method, url, content=b"456")).status_code in (403, 405)
    assert (await store.get("a")).data == b"123"


async def test_a_link_to_write_takes_just_what_was_announced(
    store: Store, http: httpx.AsyncClient
) -> None:
    url = await store.presign_put("a", expires_in=60, content_type="text/plain", size=3)
    for content, content_type in [(b"1234", "text/plain"), (b"123", "text/html"), (b"", "")]:
        answer = await http.put(url, content=content, headers={"content-type": content_type})
        assert answer.status_code == 403
    with pytest.raises(ObjectNotFound):
        await store.get("a")
    answer = await http.put(url, content=b"123", headers={"content-type": "text/plain"})
    assert answer.status_code == 200
    assert (await store.get("a")).data == b"123"


async def test_a_link_that_only_creates_replaces_nothing(
    store: Store, http: httpx.AsyncClient
) -> None:
    """Who repeats a PUT that had arrived learns that it is there."""
    url = await store.presign_put("a", expires_in=60, size=3, create_only=True)
    only_new = {"If-None-Match": "*"}
    assert (await http.put(url, content=b"new", headers=only_new)).status_code == 200
    assert (await http.put(url, content=b"123", headers=only_new)).status_code == 412
    assert (await store.get("a")).data == b"new"


async def test_a_link_that_only_creates_cannot_be_used_without_saying_so(
    store: Store, http: httpx.AsyncClient
) -> None:
    await store.put("a", b"old")
    url = await store.presign_put("a", expires_in=60, size=3, create_only=True)
    for headers in ({}, {"If-None-Match": "x"}):
        assert (await http.put(url, content=b"new", headers=headers)).status_code == 403
    assert (await store.get("a")).data == b"old"


async def test_a_link_to_a_part_takes_just_its_size(store: Store, http: httpx.AsyncClient) -> None:
    links = await store.presign_parts("a", size=PART + 3, part_size=PART, expires_in=60)
    for url, size in zip(links.urls, (PART, 3), strict=True):
        for wrong in (0, size - 1, size + 1):
            assert (await http.put(url, content=bytes(wrong))).status_code == 403
    with pytest.raises(PartsMissing, match=f"0 of {PART + 3} bytes"):
        await store.join_parts("a", links.upload_id, size=PART + 3)


@pytest.mark.parametrize(
    ("genuine", "forged"),
    [("/mine?", "/others?"), ("partNumber=1", "partNumber=2"), ("uploadId=", "uploadId=x")],
    ids=["other key", "other part", "other upload"],
)
async def test_a_link_to_a_part_writes_no_other(
    store: Store, http: httpx.AsyncClient, genuine: str, forged: str
) -> None:
    links = await store.presign_parts("mine", size=3, part_size=PART, expires_in=60)
    assert genuine in links.urls[0]
    answer = await http.put(links.urls[0].replace(genuine, forged), content=b"123")
    assert answer.status_code == 403


async def test_a_link_to_write_does_not_read(store: Store, http: httpx.AsyncClient) -> None:
    await store.put("a", b"123")
    url = await store.presign_put("a", expires_in=60)
    assert (await http.get(url)).status_code == 403


@pytest.mark.parametrize(
    "filename", ["plain.txt", 'q"uo;te.txt', "näme 日本.png", "a/b\r\nX: y.txt"]
)
async def test_a_saved_files_name_cannot_break_out_of_its_header(
    store: Store, http: httpx.AsyncClient, filename: str
) -> None:
    await store.put("a", b"123")
    answer = await http.get(await store.presign_get("a", expires_in=60, filename=filename))
    assert answer.content == b"123"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "x" not in answer.headers
