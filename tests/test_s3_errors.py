"""A store that is set up wrongly says, in a sentence, what to change; at start-up and in `health`.

On Ceph RGW: moto checks neither keys nor clocks.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest

from storage import StorageMisconfigured, StorageUnavailable
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, FaultyS3
from worker.settings import Settings

if TYPE_CHECKING:
    from storage import StoreHealth
    from tests.servers import S3Server


async def checked(server: S3Server, **wrong: Any) -> StoreHealth:
    """The health of a store with these settings, none of which may leak."""
    store = S3Store(**{**server.place(), "retry_seconds": 0.3, **wrong})
    try:
        health = await store.check()
    finally:
        await store.close()
    for secret in ("secret_access_key", "access_key_id"):
        assert str(server.place()[secret]) not in health.message
    return health


async def refused(server: S3Server, **wrong: Any) -> str:
    """What such a store says, in every way it can be asked."""
    health = await checked(server, **wrong)
    assert not health.ok
    store = S3Store(**{**server.place(), "retry_seconds": 0.3, **wrong})
    for call in (
        store.get("a"),
        store.put("a", b""),
        store.create("a", b""),
        store.list(""),
        store.presign_get("a", expires_in=60),
    ):
        with pytest.raises(StorageMisconfigured):
            await call
    await store.close()
    return health.message


async def test_a_missing_bucket(ceph: S3Server) -> None:
    sentence = await refused(ceph, bucket="no-such-bucket")
    assert "'no-such-bucket'" in sentence
    assert "does not exist: create it, or correct S3_BUCKET" in sentence


async def test_an_unknown_access_key(ceph: S3Server) -> None:
    assert "correct BUCKET_ACCESS_KEY_ID" in await refused(ceph, access_key_id="nobody")


async def test_a_wrong_secret_key(ceph: S3Server) -> None:
    assert "correct BUCKET_SECRET_ACCESS_KEY" in await refused(ceph, secret_access_key="wrong")


async def test_somebody_elses_bucket(ceph: S3Server) -> None:
    assert ceph.other is not None
    sentence = await refused(ceph, **ceph.other._asdict())
    assert "may not do PutObject" in sentence
    assert "s3:ListBucket" in sentence


async def test_403_for_a_missing_object_is_not_called_not_found(ceph: S3Server) -> None:
    assert ceph.other is not None
    store = S3Store(**ceph.place() | ceph.other._asdict())  # type: ignore[arg-type]
    with pytest.raises(StorageMisconfigured, match="will not say whether an object is there"):
        await store.get("not-there")
    await store.close()


async def test_a_clock_that_is_off_by_an_hour(
    ceph: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fast(*_args: Any, **_options: Any) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)

    monkeypatch.setattr("botocore.auth.get_current_datetime", fast)
    health = await checked(ceph)
    assert not health.ok
    assert "this machine's clock is wrong" in health.message
    assert "set the clock" in health.message
    assert health.clock_offset_seconds is not None


async def test_an_endpoint_that_nobody_listens_at(ceph: S3Server) -> None:
    sentence = (await checked(ceph, endpoint_url="http://127.0.0.1:1")).message
    assert "cannot be reached" in sentence
    assert "S3_ENDPOINT_URL" in sentence


async def test_an_endpoint_that_has_no_address(ceph: S3Server) -> None:
    assert "resolve" in (await checked(ceph, endpoint_url="http://no-such-host.invalid")).message


async def test_an_unreachable_endpoint_may_come_back(ceph: S3Server) -> None:
    store = S3Store(
        **ceph.place() | {"endpoint_url": "http://127.0.0.1:1"},  # type: ignore[arg-type]
        retry_seconds=0.1,
    )
    for call in (store.get("a"), store.create("a", b""), store.list("")):
        with pytest.raises(StorageUnavailable):
            await call
    await store.close()


@pytest.mark.parametrize("url", ["nonsense", "ftp://store", "https://"])
async def test_an_endpoint_that_is_no_url(ceph: S3Server, url: str) -> None:
    assert "https://host[:port]" in await refused(ceph, endpoint_url=url)


async def test_a_certificate_that_nobody_vouches_for(ceph: S3Server) -> None:
    sentence = await refused(ceph, endpoint_url=ceph.tls_url)
    assert "set S3_TLS_BUNDLE" in sentence


async def test_the_bundle_makes_it_trusted(ceph: S3Server) -> None:
    wrong = {"endpoint_url": ceph.tls_url, "tls_bundle": str(ceph.certificate)}
    assert (await checked(ceph, **wrong)).ok
    store = S3Store(**{**ceph.place(), **wrong})  # type: ignore[arg-type]
    assert (await store.capabilities()).presign
    await store.close()


async def test_tls_where_there_is_none(ceph: S3Server) -> None:
    url = ceph.endpoint_url.replace("http:", "https:")
    assert "does not speak TLS" in await refused(ceph, endpoint_url=url)


@pytest.mark.parametrize(
    ("status", "code"), [(400, "AuthorizationHeaderMalformed"), (301, "PermanentRedirect")]
)
async def test_a_wrong_region(ceph: S3Server, proxy: FaultyS3, status: int, code: str) -> None:
    """Ceph takes any region, so this is AWS's answer."""
    proxy.rule = lambda _: Answer.error(status, code, "<Region>eu-north-1</Region>")
    sentence = await refused(ceph, endpoint_url=proxy.url, region="us-west-2")
    assert "another region than us-west-2: set S3_REGION to eu-north-1" in sentence


async def test_an_expired_session_token(ceph: S3Server, proxy: FaultyS3) -> None:
    proxy.rule = lambda _: Answer.error(400, "ExpiredToken")
    sentence = await refused(ceph, endpoint_url=proxy.url, session_token="old")
    assert "renew AWS_SESSION_TOKEN" in sentence


async def test_what_is_not_s3_is_never_not_found(ceph: S3Server, proxy: FaultyS3) -> None:
    proxy.rule = lambda _: Answer(404, b"<html>nothing here</html>")
    store = S3Store(
        **ceph.place() | {"endpoint_url": proxy.url},  # type: ignore[arg-type]
        retry_seconds=0.1,
    )
    with pytest.raises(StorageUnavailable, match="correct S3_ENDPOINT_URL"):
        await store.get("a")
    await store.close()


# ---- settings


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(StorageMisconfigured, match="set both or none"):
        S3Store(bucket="bucket", access_key_id="only")


@pytest.mark.parametrize("prefix", ["a/../b", "a//b", "a\\b", "x" * 200, "\n"])
def test_a_prefix_that_cannot_begin_a_key_is_refused(prefix: str) -> None:
    with pytest.raises(StorageMisconfigured, match="S3_PREFIX"):
        S3Store(bucket="bucket", prefix=prefix)


@pytest.mark.parametrize("prefix", ["a/b", "/a/b", "a/b/", "//a/b//"])
def test_a_prefix_ends_with_one_slash(prefix: str) -> None:
    assert S3Store(bucket="bucket", prefix=prefix).url == "s3://bucket/a/b/"


def test_the_environment_names_the_store_as_runpod_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BUCKET_NAME": "bucket",
        "BUCKET_ENDPOINT_URL": "https://user:secret@host",
        "BUCKET_ACCESS_KEY_ID": "key",
        "BUCKET_SECRET_ACCESS_KEY": "secret",
        "S3_PREFIX": "team",
        "S3_READ_TIMEOUT": "7",
    }.items():
        monkeypatch.setenv(name, value)
    store = S3Store.from_settings(Settings())
    config = store._bucket.config
    assert store.url == "s3://bucket/team/"
    assert (config.access_key_id, config.secret_access_key) == ("key", "secret")
    assert config.read_timeout == 7
    assert "secret" not in f"{config!r}".replace(config.endpoint_url or "", "")
    assert "secret" not in str(config.place)


async def test_an_endpoint_that_names_the_bucket_does_not_name_it_twice() -> None:
    """RunPod's BUCKET_ENDPOINT_URL often does."""
    store = S3Store(
        bucket="pail",
        endpoint_url="https://pail.s3.example.com",
        access_key_id="key",
        secret_access_key="secret",
    )
    url = store._bucket.link("a", 60, {})
    assert url.startswith("https://pail.s3.example.com/a?")
    await store.close()
