"""Keys and prefixes that no store may ever see are refused before any request is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage import MAX_KEY_BYTES, MAX_PART_BYTES, InvalidKey, WantedLink, check_key, check_prefix
from tests import servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from storage import Store

LONGEST = "a/" * (MAX_KEY_BYTES // 2 - 1) + "ab"
REFUSED = {
    "empty": "",
    "absolute": "/etc/passwd",
    "escapes": "../secret",
    "escapes later": "a/../../secret",
    "ends in dots": "a/..",
    "a dot": "./a",
    "empty part": "a//b",
    "a folder": "a/",
    "backslash": "a\\..\\b",
    "newline": "a\nb",
    "null": "a\0b",
    "escape sequence": "a\x1b[31mb",
    "delete": "a\x7f",
    "no-break space": "a\u00a0b",
    "right-to-left override": "a\u202eb",
    "zero-width joiner": "a\u200db",
    "lone surrogate": "a\ud800b",
    "decomposed": "a\u0308",
    "over-long": "a/" * (MAX_KEY_BYTES // 2) + "ab",
    "over-long part": "a" * (MAX_PART_BYTES + 1),
    "over-long in UTF-8": "ä" * (MAX_KEY_BYTES // 2 + 1),
}


@pytest.mark.parametrize("key", REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidKey):
        check_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a/b",
        "...",
        "..a/b..",
        ".hidden",
        "~x",
        "a b",
        "ä/日本/😀",
        "a" * MAX_PART_BYTES,
        LONGEST,
    ],
)
def test_a_good_key_is_returned_as_it_is(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/"])
def test_a_good_prefix_is_empty_or_a_folder(prefix: str) -> None:
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["a", "a/b", "/", "a//", "../", "/a/", "a\n/"])
def test_a_bad_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidKey):
        check_prefix(prefix)


def test_a_refusal_does_not_repeat_the_key() -> None:
    with pytest.raises(InvalidKey) as caught:
        check_key("../token-of-somebody")
    assert "token" not in str(caught.value)


async def nothing() -> AsyncIterator[bytes]:
    """A stream that ends at once."""
    return
    yield b""


CALLS: dict[str, Callable[[Store, str, Path], Awaitable[object]]] = {
    "get": lambda store, key, _: store.get(key),
    "stat": lambda store, key, _: store.stat(key),
    "get_range": lambda store, key, _: store.get_range(key, offset=0, length=1),
    "put": lambda store, key, _: store.put(key, b""),
    "create": lambda store, key, _: store.create(key, b""),
    "replace": lambda store, key, _: store.replace(key, b"", "version"),
    "list": lambda store, key, _: store.list(f"{key}/"),
    "list_folders": lambda store, key, _: store.list_folders(f"{key}/"),
    "upload": lambda store, key, file: servers.upload_file(store, file, key),
    "upload_stream": lambda store, key, _: store.upload_stream(nothing(), key, size=0),
    "download": lambda store, key, file: store.download(key, file),
    "presign_get": lambda store, key, _: store.presign_get(key, expires_in=60),
    "presign_gets": lambda store, key, _: store.presign_gets(
        [WantedLink("good"), WantedLink(key)], expires_in=60
    ),
    "presign_put": lambda store, key, _: store.presign_put(key, expires_in=60),
    "presign_parts": lambda store, key, _: store.presign_parts(
        key, size=1, part_size=5 << 20, expires_in=60
    ),
    "join_parts": lambda store, key, _: store.join_parts(key, "upload", size=1),
}


@pytest.fixture(params=["folder", "bucket"])
async def untouched(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store that would answer any request with `StorageUnavailable`, or show that it was made."""
    root = tmp_path / "store"
    nowhere = servers.S3Server("http://127.0.0.1:9", servers.Keys("key", "secret"), "bucket")
    place: servers.Place = {"root": str(root)} if request.param == "folder" else nowhere.place()
    store = servers.open_place(place)
    yield store
    await store.close()
    assert not root.exists()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_every_call_refuses_bad_keys_before_any_request(
    untouched: Store, call: Callable[[Store, str, Path], Awaitable[object]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for key in REFUSED.values():
        with pytest.raises(InvalidKey):
            await call(untouched, key, file)
