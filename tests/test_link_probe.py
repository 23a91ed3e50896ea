"""Links to write exist only where they write what was signed: found out on real servers.

`strict` is Ceph RGW behind AWS's rule: it refuses unsigned `x-amz-*` headers. Each test lets one
kind of them through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from storage import PresignUnsupported, StorageMisconfigured, StorageUnavailable
from stores.probe import LINKS_TO_WRITE_REFUSED, LINKS_TO_WRITE_UNPROVEN, NO_LINKS_TO_WRITE
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, Fault, FaultyS3, always, conditional, unsigned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from storage import Store
    from tests.faulty_s3 import Asked, Verdict
    from tests.servers import S3Server

PART = 5 << 20


@pytest.fixture
async def store(ceph: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    store = S3Store(**{**ceph.place(), "endpoint_url": proxy.url}, retry_seconds=4.0)  # type: ignore[arg-type]
    proxy.rule = unsigned
    yield store
    await store.close()


def copies(asked: Asked) -> bool:
    return "x-amz-copy-source" in asked.headers


def to_part(asked: Asked) -> bool:
    return "partNumber=" in asked.path


#: What a store may heed while it refuses all else: each alone makes its links unsafe.
HEEDED: dict[str, Callable[[Asked], bool]] = {
    "a copy into an empty file": lambda asked: (
        copies(asked) and not to_part(asked) and asked.headers["content-length"] == "0"
    ),
    "a copy in place of a body": lambda asked: (
        copies(asked) and not to_part(asked) and asked.headers["content-length"] != "0"
    ),
    "a copy by the link to cancel": lambda asked: (
        copies(asked) and not to_part(asked) and "content-type" not in asked.headers
    ),
    "a copy of a stretch": lambda asked: (
        "x-amz-copy-source-range" in asked.headers and not to_part(asked)
    ),
    "a copy into a part": lambda asked: copies(asked) and to_part(asked),
    "another spelling": lambda asked: "x_amz_copy_source" in asked.headers,
    "an ACL": lambda asked: "x-amz-acl" in asked.headers,
    "a grant to read": lambda asked: "x-amz-grant-read" in asked.headers,
    "a grant of all": lambda asked: "x-amz-grant-full-control" in asked.headers,
    "a grant to write grants": lambda asked: "x-amz-grant-write-acp" in asked.headers,
}


def heeding(lets_by: Callable[[Asked], bool]) -> Callable[[Asked], Verdict]:
    return lambda asked: None if lets_by(asked) else unsigned(asked)


async def test_a_store_that_refuses_unsigned_headers_has_links_to_write(
    store: S3Store, proxy: FaultyS3
) -> None:
    assert await store.capabilities() == (True, True, True, True, ())
    assert "X-Amz-Signature=" in await store.presign_put("a", expires_in=60)
    assert (await store.list("locks/")).objects == []


@pytest.mark.parametrize("heeded", HEEDED)
async def test_a_store_that_heeds_one_unsigned_header_has_no_links_to_write(
    store: S3Store, proxy: FaultyS3, heeded: str
) -> None:
    proxy.rule = heeding(HEEDED[heeded])
    assert await store.capabilities() == (True, True, True, False, (NO_LINKS_TO_WRITE,))


@pytest.mark.parametrize(
    "harmless",
    ["x-amz-meta-a", "x-amz-tagging", "x-amz-storage-class", "x-amz-website-redirect-location"],
)
async def test_headers_that_describe_only_the_holders_own_object_are_no_lack(
    store: S3Store, proxy: FaultyS3, harmless: str
) -> None:
    proxy.rule = heeding(lambda asked: harmless in asked.headers)
    assert (await store.capabilities()).write_links


async def test_ceph_as_it_is_has_links_to_read_and_none_to_write(ceph: S3Server) -> None:
    store = S3Store(**ceph.place())  # type: ignore[arg-type]
    found = await store.capabilities()
    assert (found.presign, found.write_links, found.degraded) == (True, False, (NO_LINKS_TO_WRITE,))
    with pytest.raises(PresignUnsupported):
        await store.presign_put("a", expires_in=60)
    with pytest.raises(PresignUnsupported):
        await store.presign_parts("a", size=PART, part_size=PART, expires_in=60)
    assert "X-Amz-Signature=" in await store.presign_get("a", expires_in=60)
    await store.close()


async def test_a_store_that_takes_more_than_was_signed_has_no_links_to_write(
    moto: S3Server,
) -> None:
    """moto checks no signature, so that the signed size does not bind."""
    with FaultyS3(moto.endpoint_url) as proxy:
        proxy.rule, proxy.one_at_a_time = unsigned, True
        store = S3Store(**{**moto.place(), "endpoint_url": proxy.url})  # type: ignore[arg-type]
        assert not (await store.capabilities()).write_links
        await store.close()


async def test_a_status_proves_nothing(store: S3Store, proxy: FaultyS3) -> None:
    """A store may copy and then say that it failed."""
    proxy.rule = lambda asked: Fault.FAILED_AFTER if copies(asked) else unsigned(asked)
    store._retry_seconds = 0.5
    found = await store.capabilities()
    assert (found.write_links, found.degraded) == (False, (LINKS_TO_WRITE_UNPROVEN,))


async def test_a_store_that_goes_away_meanwhile_is_asked_again(
    store: S3Store, proxy: FaultyS3
) -> None:
    """Its links work before, and they do not once a copy was tried."""
    tried = False

    def rule(asked: Asked) -> Verdict:
        nonlocal tried
        tried = tried or copies(asked)
        return Fault.SLOW_DOWN if tried else unsigned(asked)

    proxy.rule = rule
    store._retry_seconds = 0.5
    with pytest.raises(StorageUnavailable):
        await store.capabilities()
    proxy.rule = unsigned
    assert (await store.capabilities()).write_links


async def test_a_store_that_refuses_a_plain_write_by_a_link_is_said_to(
    store: S3Store, proxy: FaultyS3
) -> None:
    refusal = always(
        Answer.error(403, "AccessDenied"),
        lambda asked: asked.method == "PUT" and "X-Amz-Signature=" in asked.path,
    )
    proxy.rule = refusal
    assert (await store.capabilities()).degraded == (LINKS_TO_WRITE_REFUSED,)


async def test_a_bundle_of_certificates_that_is_not_there_is_a_wrong_setting(
    ceph: S3Server, tmp_path: Path
) -> None:
    store = S3Store(**ceph.place(), tls_bundle=str(tmp_path / "none"))  # type: ignore[arg-type]
    with pytest.raises(StorageMisconfigured):
        await store.capabilities()
    await store.close()


async def test_a_link_that_only_creates_signs_no_condition_that_the_store_does_not_know(
    store: S3Store, proxy: FaultyS3
) -> None:
    """As Backblaze B2, which answers 501 to conditions."""
    lack = always(Answer.error(501, "NotImplemented"), conditional)
    proxy.rule = lambda asked: lack(asked) or unsigned(asked)
    found = await store.capabilities()
    assert (found.conditional_writes, found.write_links) == (False, True)
    assert "if-none-match" not in await store.presign_put("a", expires_in=60, create_only=True)


@pytest.mark.parametrize("place", ["ceph"], indirect=True)
@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-copy-source": "/bucket/other"},
        {"x-amz-acl": "public-read"},
        {"x-amz-meta-a": "b"},
        {"x-http-method-override": "DELETE"},
        {"x-http-method-override": "PUT"},
    ],
    ids=str,
)
async def test_a_link_to_read_writes_nothing_whatever_headers_it_is_used_with(
    place: dict[str, str], headers: dict[str, str]
) -> None:
    store: Store = S3Store(**place)  # type: ignore[arg-type]
    version = await store.put("a", b"123")
    url = await store.presign_get("a", expires_in=60)
    async with httpx.AsyncClient() as http:
        await http.get(url, headers=headers)
        bare = await http.get(url.partition("?")[0])
    stored = await store.get("a")
    assert (stored.data, stored.version, bare.status_code) == (b"123", version, 403)
    await store.close()
