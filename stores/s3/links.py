"""Links to a bucket, and files that callers send in parts by them. Blocking."""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import quote

from storage import ObjectNotFound, PartsMissing
from stores.s3.files import MAX_PARTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage import WantedLink
    from stores.s3.bucket import Bucket, Part

#: S3's limits on every part but the last.
MIN_PART, LARGEST_PART = 5 << 20, 5 << 30
#: Seconds that a link may live at most, by signature version 4.
WEEK = 7 * 24 * 3600


def check_life(seconds: int) -> None:
    """Raises ValueError if no link may live so long."""
    if not 1 <= seconds <= WEEK:
        raise ValueError(f"a link lives 1 to {WEEK} seconds")


def part_sizes(size: int, part_size: int) -> list[int]:
    """Of each part of a file.

    Raises:
        ValueError: S3 takes no such parts.
    """
    if not MIN_PART <= part_size <= LARGEST_PART:
        raise ValueError(f"a part has {MIN_PART} to {LARGEST_PART} bytes")
    parts = math.ceil(size / part_size)
    if not 1 <= parts <= MAX_PARTS:
        raise ValueError(f"a file is sent in 1 to {MAX_PARTS} parts, not {parts}")
    return [part_size] * (parts - 1) + [size - part_size * (parts - 1)]


def links_to_read(bucket: Bucket, wanted: Sequence[WantedLink], seconds: int) -> list[str]:
    """By full keys, in their order. 0.1 ms each."""
    return [bucket.link(key, seconds, _named(filename)) for key, filename in wanted]


def _named(filename: str | None) -> dict[str, str]:
    return {"response-content-disposition": attachment(filename)} if filename else {}


def attachment(filename: str) -> str:
    """A Content-Disposition (RFC 6266): plain for old clients, exact for the others."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def link_to_write(
    bucket: Bucket,
    key: str,
    seconds: int,
    *,
    content_type: str | None,
    size: int | None,
    create_only: bool,
) -> str:
    """Signs what is given; a PUT must then carry it. Asks the store nothing."""
    condition = "*" if create_only else None
    signed = {"ContentType": content_type, "ContentLength": size, "IfNoneMatch": condition}
    params = {name: value for name, value in signed.items() if value is not None}
    return bucket.presign("put_object", {"Key": key, **params}, seconds)


def links_to_parts(
    bucket: Bucket, key: str, upload_id: str, sizes: Sequence[int], seconds: int
) -> list[str]:
    """One for each part, which must have just that size."""
    upload = {"Key": key, "UploadId": upload_id}
    return [
        bucket.presign(
            "upload_part", {**upload, "PartNumber": number, "ContentLength": size}, seconds
        )
        for number, size in enumerate(sizes, 1)
    ]


def join(bucket: Bucket, key: str, upload_id: str, size: int) -> None:
    """As `Store.join_parts`, of a full key. To be tried anew after a lost answer.

    Raises:
        StorageUnavailable: also when a part was sent once more in this moment.
    """
    mark, _, upload_id = upload_id.partition(".")
    parts = _all_parts(bucket, key, upload_id)
    if parts is None:
        if not _was_joined(bucket, key, mark, size):
            raise PartsMissing(f"there is no such upload: 0 of {size} bytes came")
        return
    came = sum(part.size for part in parts)
    gapless = all(part.number == number for part, number in zip(parts, count(1), strict=False))
    if came != size or not gapless:
        raise PartsMissing(f"{came} of {size} bytes came; parts: {len(parts)}")
    bucket.complete_upload(key, upload_id, [part.tag for part in parts])


def _all_parts(bucket: Bucket, key: str, upload_id: str) -> list[Part] | None:
    parts: list[Part] = []
    while True:
        page = bucket.parts(key, upload_id, parts[-1].number if parts else 0)
        if page is None:
            return None
        parts += page.parts
        if not page.more:
            return parts


def _was_joined(bucket: Bucket, key: str, mark: str, size: int) -> bool:
    """Whether the object is of this very upload, and not one that was there before."""
    try:
        return bucket.stat(key).size == size and bucket.mark(key) == mark
    except ObjectNotFound:
        return False
