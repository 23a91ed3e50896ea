"""The bucket's settings as people paste them: recognised, with a sentence that says what to set.

Pure. Each function raises ValueError with that sentence. No sentence repeats a key.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def bucket_name(text: str) -> str:
    """The name of a bucket: no URL, no path."""
    name, _, rest = text.strip().removeprefix("s3://").strip("/").partition("/")
    if "://" in text.removeprefix("s3://"):
        raise ValueError(
            "is the bucket's name alone, not a URL: the host goes into S3_ENDPOINT_URL"
        )
    if name != text.strip():
        prefix = f" and S3_PREFIX={rest}" if rest else ""
        raise ValueError(f"is the bucket's name alone: set S3_BUCKET={name}{prefix}")
    return name


def endpoint_address(text: str) -> str:
    """The address of an S3 API."""
    url = text.strip()
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise ValueError("is of the form https://host[:port]")
    return url


def check_together(url: str | None, bucket: str | None) -> None:
    """Refuse an address that already holds the bucket, as R2's console shows it.

    The worker names the bucket in each request, so its keys would begin with the name once more.
    """
    if url is None:
        return
    parts = urlsplit(url)
    above, _, last = parts.path.rstrip("/").rpartition("/")
    if bucket is None:
        raise ValueError("S3_ENDPOINT_URL is set, but no bucket: set S3_BUCKET to its name")
    if last == bucket:
        right = f"{parts.scheme}://{parts.netloc}{above}"
    elif parts.hostname and parts.hostname.startswith(f"{bucket.lower()}."):
        right = f"{parts.scheme}://{parts.netloc[len(bucket) + 1 :]}"
    else:
        return
    raise ValueError(
        f"S3_ENDPOINT_URL holds the bucket's name: set S3_ENDPOINT_URL={right} and "
        f"S3_BUCKET={bucket}"
    )


def credential(text: str) -> str:
    """A key without the white space around it."""
    key = text.strip()
    if re.search(r"\s", key):
        raise ValueError("holds a space or a line break: paste it again, as one line")
    return key
