"""The size of a request is checked before anything is built; a large one is read in a thread."""

import threading
import tracemalloc

import pytest

import api.answers
from api.limits import MAX_DEPTH, UPLOAD, USUAL, check_size
from api.parsing import InvalidRequest
from api.starts import MAX_SECRETS
from stores.local.store import LocalStore
from tests.kit import Caller

MANY = 100_000


def start(**fields):
    return {"action": "start", "kind": "sleep", **fields}


def upload(**fields):
    return {"action": "upload", "folder": "f", **fields}


def nested(depth):
    return [nested(depth - 1)] if depth > 1 else 0


TOO_LARGE = {
    "inputs": (start(inputs={f"i{n}": "folder:f" for n in range(MANY)}), "at most 64"),
    "labels": (start(labels={f"l{n}": "x" for n in range(MANY)}), "at most 32"),
    "files": (upload(files=[{"path": "p", "size": 1}] * MANY), "at most 10000"),
    "process ids": ({"action": "bulk_download", "process_ids": ["p"] * MANY}, "at most 50"),
    "unknown fields": ({"action": "kinds"} | {f"u{n}": 1 for n in range(MANY)}, "fields"),
    "params": (start(params={f"p{n}": 1 for n in range(MANY)}), "values"),
    "a list within": (start(params={"a": {"b": [0] * MANY}}), "values"),
    "a list of files": (upload(files=[[0] * 100] * 10_000), "values"),
    "one text": (start(params={"message": "eyJ-" * MANY}), "a text of 400000 characters"),
    "a name": (start(params={"n" * MANY: 1}), "a text of 100000 characters"),
    "many texts": (start(params={"a": ["x" * 30_000] * 36}), "texts of more than"),
    "a chunk": (upload(chunk={"path": "p", "offset": 0, "data": "A" * 6_000_000}), "a text of"),
    "depth": (start(params={"a": nested(MAX_DEPTH)}), "nested deeper"),
    "no object": ([0] * MANY, "values"),
}


@pytest.fixture
def call(tmp_path):
    return Caller(LocalStore(tmp_path / "store"), tmp_path, background=False)


@pytest.mark.parametrize(("request_", "says"), TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_request_that_is_too_large_is_refused_before_anything_is_built(
    call, request_, says
):
    """A million inputs took 8 s of the event loop, unknown fields 587 MB."""
    tracemalloc.start()
    try:
        reply = await call.handler({"id": "j", "input": request_})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert says in reply["error"]
    assert "invalid_request" in reply["error"]
    assert peak < 2_000_000


def test_the_largest_requests_that_are_documented_are_taken():
    sha256 = "0" * 64
    file = {"path": "p", "size": 1, "sha256": sha256, "content_type": "a/b", "upload_id": "u"}
    assert not check_size(upload(files=[file] * 10_000)).small
    check_size(upload(chunk={"path": "p", "offset": 0, "data": "A" * UPLOAD.one_text}))
    check_size(start(params={"texts": ["x" * USUAL.one_text] * 31}))
    check_size(start(params={"list": [0] * (USUAL.values - 10)}))


@pytest.mark.parametrize(
    ("request_", "in_thread"),
    [(upload(files=[{"path": f"{n}", "size": 1} for n in range(1000)]), True), (start(), False)],
)
async def test_a_large_request_is_read_in_a_thread(call, monkeypatch, request_, in_thread):
    readers = []

    def read(request):
        readers.append(threading.current_thread())
        raise InvalidRequest("enough")

    monkeypatch.setattr(api.answers, "parse_action", read)
    await call.handler({"id": "j", "input": request_})
    assert (readers[0] is not threading.main_thread()) == in_thread


def link(first, count):
    query = "&".join(f"k={n:06}" for n in range(first, first + count))
    return f"https://example.com/x?{query}"


async def test_more_secrets_than_a_log_can_be_searched_for_are_refused(call):
    inputs = {f"i{n}": link(n * 100, 100) for n in range(MAX_SECRETS // 100 + 1)}
    reply = await call("start", kind="sleep", inputs=inputs)
    assert "more than 500 secret values" in reply["error"]["message"]
