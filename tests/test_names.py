"""Every name that a file may have is shown as text and stored under a key, and comes back."""

from __future__ import annotations

import json
import os
import sys
import unicodedata

import pytest

from child.names import MAX_IN_KEY, from_key, in_key, is_relative, json_text, on_disk, shown
from storage import check_key
from utils import Frozen

ORDINARY = ["ok.png", "a b.png", "ä/日本/😀", "100%.png", "a%20b.png", "%E5%86%99.png", "{x}", ".h"]
#: On a disk, as bytes: what a POSIX file may be called.
ODD = {
    "U+3000": "写真\u30001.png".encode(),
    "U+202F": "Screenshot 10.03.01\u202fAM.png".encode(),
    "U+00A0": "a\u00a0b".encode(),
    "decomposed": unicodedata.normalize("NFD", "café Å 한글").encode(),
    "a mark after an escape": "\u3000\u0301\u0301".encode(),
    "marks out of order": "a\u0301\u0323".encode(),
    "joiners": "👩\u200d👩\u200d👧.png".encode(),
    "right to left": "a\u202eb\u200f".encode(),
    "backslash": rb"a\b",
    "newline": b"a\nb",
    "every control": bytes(range(1, 32)) + b"\x7f",
    "newer than Python's tables": "\U0001fae9\U000e0fff\u0378.png".encode(),
    "no character": "\ufffe\ufdd0\U0001ffff".encode(),
    "private": "\ue000".encode(),
    "not UTF-8": b"caf\xe9.png",
    "a surrogate in UTF-8": b"\xed\xa0\x80",
    "like a shown byte": rb"caf\xe9.png",
    "like a shown backslash": rb"\x5cxe9 \x5c",
    "a byte after its like": b"\\x\xe9\\\xe9",
    "like an escape": b"%{3000} %{25}{3000} %{}",
    "long once encoded": "\u3000".encode() * 85,
    "long in all": b"/".join([b"a" * 250] * 4),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_is_its_own_text_and_key(name):
    assert in_key(name) == shown(name) == on_disk(name) == from_key(name) == name


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD.keys())
def test_an_odd_name_comes_back_from_its_text_and_its_key(raw):
    path = shown(os.fsdecode(raw))
    assert json.loads(json.dumps(path).encode()) == path == path.encode().decode()
    assert os.fsencode(on_disk(path)) == raw
    assert is_relative(path)
    check_key(f"inputs/d/{in_key(path)}")
    assert from_key(in_key(path)) in (path, in_key(path))


def test_no_two_odd_names_share_a_text_or_a_key():
    paths = [shown(os.fsdecode(raw)) for raw in ODD.values()]
    assert len(set(paths)) == len({in_key(path) for path in paths}) == len(ODD)


def test_only_bytes_that_json_cannot_represent_are_shown_escaped():
    assert shown(os.fsdecode(b"caf\xe9 \\ \n")) == "caf\\xe9 \\ \n"
    assert shown(os.fsdecode(ODD["U+3000"])) == "写真\u30001.png"


def test_a_name_too_long_for_a_key_gets_a_hashed_key_that_leads_to_it():
    key = in_key("\u3000" * 85)
    assert len(key) < 80 < len("\u3000" * 85)
    assert in_key(key) == from_key(key) == key
    assert len(in_key("a/" * (MAX_IN_KEY // 2 - 1) + "a")) > 80


@pytest.mark.parametrize("codes", [range(1, 0x3000), range(0x3000, sys.maxunicode, 997)])
def test_every_character_comes_back(codes):
    for code in set(codes) - {ord("/")}:
        path = f"a{chr(code)}\u0301".encode(errors="ignore").decode()
        assert from_key(in_key(path)) == path


@pytest.mark.parametrize(
    "rest", ["", "d/", "d//x", "a\\b", "a\u00a0b", "%{41}", "../x", "%{FFFFFF}"]
)
def test_a_key_of_another_origin_has_no_path(rest):
    assert from_key(rest) is None


@pytest.mark.parametrize("path", ["", "/a", "a/../b", "a//b", "a\0b", "\ud800", "a" * 256])
def test_a_path_that_no_file_can_have_is_refused(path):
    assert not is_relative(path)


def test_any_text_of_a_job_can_be_sent():
    class Said(Frozen):
        text: str

    said = Said.model_validate_json(json_text({"text": "caf\udce9 \ud800 \udc00"}).encode())
    assert said.text == r"caf\xe9 \ud800 \udc00"
