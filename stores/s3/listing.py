"""Reads a page of `list_objects_v2`; boto3 takes eight times the CPU time for a thousand keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from storage import Listed
from stores.s3.headers import parse_time, version_of

if TYPE_CHECKING:
    from typing import Any


class Listing(NamedTuple):
    """A page of what begins with a prefix, in key order."""

    rows: list[Listed]
    #: Common prefixes, each with its `/`.
    folders: list[str]
    #: More keys follow.
    more: bool


def read_xml(data: bytes) -> ElementTree.Element:
    """The root, names without their namespace: some stores have one, and some have two.

    Raises:
        ParseError: it is not XML.
    """
    root = ElementTree.fromstring(data, ElementTree.XMLParser(encoding="utf-8"))  # noqa: S314
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def read_listing(data: bytes) -> Listing:
    """The page.

    Raises:
        ResponseParserError: it is no list.
        ClientError: it is a failure, which S3 may find out after it has answered 200.
    """
    try:
        root = read_xml(data)
        if root.tag == "Error":
            raise _late_failure(root)
        return _listing(root)
    except (ElementTree.ParseError, ValueError) as error:
        raise ResponseParserError("not a list") from error


def _late_failure(root: ElementTree.Element) -> ClientError:
    told = {"Error": {"Code": root.findtext("Code", "")}}
    metadata = {"HTTPStatusCode": 500, "HTTPHeaders": dict[str, str]()}
    return ClientError(cast("Any", told | {"ResponseMetadata": metadata}), "ListObjectsV2")


def _listing(root: ElementTree.Element) -> Listing:
    if root.tag != "ListBucketResult":
        raise ValueError(root.tag)
    decode = _unescaped if root.findtext("EncodingType") == "url" else str
    rows = [
        Listed(
            decode(row.findtext("Key", "")),
            int(row.findtext("Size", "")),
            parse_time(row.findtext("LastModified", "")).timestamp(),
            _version(row.findtext("ETag", "")),
        )
        for row in root.iter("Contents")
    ]
    folders = [decode(each.findtext("Prefix", "")) for each in root.iter("CommonPrefixes")]
    if not all(row.key for row in rows) or not all(folders):
        raise ValueError("a row without a key")
    return Listing(rows, folders, root.findtext("IsTruncated") == "true")


def _version(etag: str) -> str:
    """Empty without an ETag: such a row is told from others by its size and time."""
    try:
        return version_of(etag)
    except ResponseParserError:
        return ""


def _unescaped(key: str) -> str:
    """As `unquote_plus`, which would take as long as everything else about a row."""
    key = key.replace("%2F", "/").replace("%7E", "~")
    return unquote_plus(key) if "%" in key or "+" in key else key
