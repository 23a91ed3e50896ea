"""Headers that are missing or mangled: an unknown time is unknown, and half an answer is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage import StorageUnavailable
from stores.s3.headers import version_of
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer
from utils import read_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.faulty_s3 import FaultyS3
    from tests.servers import S3Server

HUGE_ZONE = "Wed, 21 Oct 2026 07:28:00 +99999999999999999999"
GOOD_TIME = "2026-10-21T07:28:00.000Z"
NO_TIMES = [None, "", "0", "yesterday", "Thu, 01 Jan 1970 00:00:00 GMT", HUGE_ZONE]


@pytest.fixture
async def store(ceph: S3Server, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    """On Ceph RGW, through the proxy, and probed while nothing was missing."""
    place = {**ceph.place(), "endpoint_url": proxy.url}
    store = S3Store(**place, retry_seconds=0.3)  # type: ignore[arg-type]
    await store.capabilities()
    yield store
    await store.close()


@pytest.mark.parametrize("date", NO_TIMES)
async def test_without_a_date_the_age_is_unknown_and_our_clock_is_no_substitute(
    store: S3Store, proxy: FaultyS3, date: str | None
) -> None:
    await store.put("a", b"1")
    known = await store.get("a")
    proxy.told = {"date": date}
    assert await store.get("a") == known._replace(age_seconds=None)
    assert await store.get("a", cached=known) == known._replace(age_seconds=None)
    assert (await store.check()).clock_offset_seconds is None


async def test_a_time_of_writing_that_is_still_to_come_tells_no_age(
    store: S3Store, proxy: FaultyS3
) -> None:
    """The store's clock was set back. Some seconds are the skew between its machines."""
    await store.put("a", b"1")
    proxy.told = {
        "date": "Wed, 21 Oct 2026 07:28:00 GMT",
        "last-modified": "Wed, 21 Oct 2026 07:28:03 GMT",
    }
    assert (await store.get("a")).age_seconds == 0
    proxy.told["last-modified"] = "Wed, 21 Oct 2026 08:28:00 GMT"
    assert (await store.get("a")).age_seconds is None


@pytest.mark.parametrize("modified", NO_TIMES)
async def test_an_object_without_a_time_of_writing_is_no_answer(
    store: S3Store, proxy: FaultyS3, modified: str | None
) -> None:
    await store.put("a", b"1")
    proxy.told = {"last-modified": modified}
    for look in (store.get, store.stat):
        with pytest.raises(StorageUnavailable, match="not S3's"):
            await look("a")


@pytest.mark.parametrize("modified", NO_TIMES)
async def test_what_is_unchanged_was_written_when_it_was_as_far_as_the_answer_says(
    store: S3Store, proxy: FaultyS3, modified: str | None
) -> None:
    """Ceph RGW's 304 has no `Last-Modified`; the time is that of the read before."""
    await store.put("a", b"1")
    known = await store.get("a")
    proxy.told = {"last-modified": modified}
    again = await store.get("a", cached=known)
    assert (again.data, again.modified) == (known.data, known.modified)
    assert again.age_seconds is not None
    assert known.age_seconds is not None
    assert again.age_seconds >= known.age_seconds
    assert proxy.done[-1][1] == 304


@pytest.mark.parametrize("etag", [None, "", '""', 'W/""'])
async def test_an_object_without_a_version_is_no_answer(
    store: S3Store, proxy: FaultyS3, etag: str | None
) -> None:
    version = await store.put("a", b"1")
    proxy.told = {"etag": etag}
    for look in (store.get, store.stat):
        with pytest.raises(StorageUnavailable, match="not S3's"):
            await look("a")
    with pytest.raises(StorageUnavailable):
        await store.replace("a", b"2", version)  # whether it was written is unknown


@pytest.mark.parametrize("form", ['W/"%s"', "%s", '"%s"', 'w/"%s"', '""%s""'])
async def test_a_version_is_the_same_however_it_is_quoted(
    store: S3Store, proxy: FaultyS3, form: str
) -> None:
    """A proxy that compresses makes ETags weak, and a weak one never equals another in If-Match."""
    version = await store.put("a", b"1")
    proxy.told = {"etag": form % version}
    known = await store.get("a")
    assert known.version == version == (await store.stat("a")).version
    assert (await store.get("a", cached=known)).data == b"1"
    proxy.told = {}
    assert await store.replace("a", b"2", known.version)


def test_a_version_has_no_quotes() -> None:
    assert version_of('W/"a-1"') == version_of('"a-1"') == version_of("a-1") == "a-1"


# ---- where an answer ends


async def test_an_object_that_ends_with_the_connection_may_be_half_of_it(
    store: S3Store, proxy: FaultyS3
) -> None:
    await store.put("a", b"1234")
    proxy.framing = "close"
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.get("a")


async def test_an_object_in_chunks_is_whole_when_the_last_one_came(
    store: S3Store, proxy: FaultyS3
) -> None:
    version = await store.put("a", b"1234")
    proxy.framing = "chunked"
    assert (await store.get("a"))[:2] == (b"1234", version)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_stretch_of_unknown_length_is_not_taken(
    store: S3Store, proxy: FaultyS3, framing: str
) -> None:
    await store.put("a", b"1234")
    proxy.framing = framing  # type: ignore[assignment]
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.get_range("a", offset=1, length=2)


@pytest.mark.parametrize("told", [None, "", "many", "-1"])
async def test_the_size_of_an_object_is_told_or_unknown(
    store: S3Store, proxy: FaultyS3, told: str | None
) -> None:
    await store.put("a", b"1234")
    proxy.told = {"content-length": told}
    with pytest.raises(StorageUnavailable):
        await store.stat("a")


@pytest.mark.parametrize("told", [None, "", "bytes", "bytes */4", "bytes 1-x/4", "bytes 0-1/4"])
async def test_bytes_without_their_place_are_not_taken(
    store: S3Store, proxy: FaultyS3, told: str | None
) -> None:
    await store.put("a", b"1234")
    proxy.told = {"content-range": told}
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.get_range("a", offset=1, length=2)


# ---- lists


def lists(modified: str | None, etag: str = "<ETag>1</ETag>") -> Answer:
    time = "" if modified is None else f"<LastModified>{modified}</LastModified>"
    row = f"<Contents><Key>a</Key><Size>1</Size>{etag}{time}</Contents>"
    return Answer(200, f"<ListBucketResult>{row}</ListBucketResult>".encode())


async def test_a_row_of_a_list_has_its_time_and_version(store: S3Store, proxy: FaultyS3) -> None:
    proxy.rule = lambda _: lists(GOOD_TIME)
    assert [row[1:] for row in (await store.list("")).objects] == [(1, 1792567680.0, "1")]


@pytest.mark.parametrize("etag", ["", "<ETag/>", "<ETag>&quot;&quot;</ETag>"])
async def test_a_row_without_a_version_has_size_and_time(
    store: S3Store, proxy: FaultyS3, etag: str
) -> None:
    proxy.rule = lambda _: lists(GOOD_TIME, etag)
    assert [row[1:] for row in (await store.list("")).objects] == [(1, 1792567680.0, "")]


@pytest.mark.parametrize("modified", NO_TIMES)
async def test_a_list_without_times_is_no_list(
    store: S3Store, proxy: FaultyS3, modified: str | None
) -> None:
    proxy.rule = lambda _: lists(modified)
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.list("")


@pytest.mark.parametrize("modified", ["0", "yesterday"])
async def test_a_list_of_folders_with_wrong_times_is_not_a_wrong_setting(
    store: S3Store, proxy: FaultyS3, modified: str
) -> None:
    proxy.rule = lambda _: lists(modified)
    with pytest.raises(StorageUnavailable, match="not S3's"):
        await store.list_folders("")


@pytest.mark.parametrize(
    "text",
    [
        "Wed, 21 Oct 2026 07:28:00 GMT",
        "Wed, 21 Oct 2026 07:28:00 -0000",
        "Wed, 21 Oct 2026 09:28:00 +0200",
        "2026-10-21T07:28:00Z",
        "2026-10-21T07:28:00.000Z",
        "2026-10-21T07:28:00",
    ],
)
def test_times_are_read_as_stores_write_them(text: str) -> None:
    told = read_time(text)
    assert told is not None
    assert told.timestamp() == 1792567680
