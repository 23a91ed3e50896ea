"""What callers bring: links to PUT to, chunks where there are none, a folder that is complete."""

import base64
import hashlib

import httpx
import pytest

from inputs.folder_files import CHUNK_BYTES, OWN, chunks_prefix, part_size
from storage import Capabilities
from tests import servers
from tests.crowd import on_every_store
from tests.test_download import paged

on_a_bucket = pytest.mark.parametrize("crowd", ["ceph"], indirect=True)
PART = 5 << 20


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def announced(**files):
    """`files` as `upload` takes them, each under the name `{key}.bin`."""
    return [
        {"path": f"{name}.bin", "size": len(data), "sha256": sha256(data)}
        for name, data in files.items()
    ]


async def put(row, data, **headers):
    """Bring a file as any HTTP client would."""
    sent = row["headers"] | headers
    async with httpx.AsyncClient() as client:
        return await client.put(row["url"], content=data, headers=sent)


async def send_chunks(worker, folder, path, data, size=CHUNK_BYTES):
    for offset in range(0, max(len(data), 1), size):
        chunk = data[offset : offset + size]
        text = base64.b64encode(chunk).decode()
        reply = await worker(
            "upload", folder=folder, chunk={"path": path, "offset": offset, "data": text}
        )
        assert "error" not in reply, reply


async def complete(worker, folder, files=()):
    return await worker("upload", folder=folder, files=list(files), complete=True)


async def listed(worker, folder):
    return await worker("list_files", folder=folder)


# ---- by links


@on_a_bucket
async def test_files_are_put_by_links_and_the_folder_is_completed(crowd):
    worker, other = crowd.worker(), crowd.worker()
    data = {"a": b"first", "b": b""}
    reply = await worker("upload", folder="f", files=announced(**data))
    for row, content in zip(reply["files"], data.values(), strict=True):
        assert (row["via"], row["method"]) == ("put", "PUT")
        assert (await put(row, content)).is_success
    assert not (await listed(other, "f"))["complete"]
    done = await complete(other, "f", announced(**data))
    assert done == {"folder": "f", "complete": True, "count": 2, "total_bytes": 5}
    folder = await listed(worker, "f")
    assert folder["complete"]
    assert [(file["path"], file["size"]) for file in folder["files"]] == [
        ("a.bin", 5), ("b.bin", 0),
    ]  # fmt: skip


@on_a_bucket
@pytest.mark.parametrize(
    ("data", "headers"),
    [
        pytest.param(b"longer than was said", {"Content-Length": "20"}, id="longer"),
        pytest.param(b"abc", {"Content-Length": "3"}, id="shorter"),
        pytest.param(b"12345", {"Content-Type": "text/html"}, id="other type"),
    ],
)
async def test_size_and_type_of_what_is_put_are_signed(crowd, data, headers):
    worker = crowd.worker()
    files = [{"path": "a.bin", "size": 5, "content_type": "application/octet-stream"}]
    [row] = (await worker("upload", folder="f", files=files))["files"]
    assert (await put(row, data, **headers)).status_code == 403
    assert (await listed(worker, "f"))["files"] == []


@on_a_bucket
async def test_a_file_that_is_there_is_left_alone_unless_it_is_to_be_overwritten(crowd):
    """Trap 24: an upload never removes anything."""
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"mine")
    await crowd.store.put("inputs/f/other.bin", b"mine too")
    files = announced(a=b"yours", b=b"new")
    rows = (await worker("upload", folder="f", files=files))["files"]
    assert [(row["path"], row["via"]) for row in rows] == [("a.bin", "exists"), ("b.bin", "put")]
    assert "url" not in rows[0]
    rows = (await worker("upload", folder="f", files=files, overwrite=True))["files"]
    assert [row["via"] for row in rows] == ["put", "put"]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"mine"
    assert (await crowd.store.get("inputs/f/other.bin")).data == b"mine too"


@on_a_bucket
async def test_a_file_above_one_put_comes_in_parts(crowd):
    """The caller puts each part where its link says; the worker puts them together."""
    worker, other = crowd.worker(single_put_bytes=PART), crowd.worker()
    data = bytes(range(256)) * (PART // 256) * 2 + b"the rest"
    files = announced(big=data)
    [row] = (await worker("upload", folder="f", files=files))["files"]
    assert (row["via"], row["part_bytes"], len(row["urls"])) == ("parts", PART, 3)
    files[0]["upload_id"] = row["upload_id"]
    async with httpx.AsyncClient() as client:
        for number, url in enumerate(row["urls"][:2]):
            part = data[number * PART : (number + 1) * PART]
            assert (await client.put(url, content=part)).is_success
        missing = await complete(other, "f", files)
        assert missing["error"]["code"] == "upload_incomplete"
        assert (await client.put(row["urls"][2], content=data[2 * PART :])).is_success
    assert (await complete(other, "f", files))["total_bytes"] == len(data)
    assert (await crowd.store.stat("inputs/f/big.bin")).size == len(data)


def test_parts_are_few_and_none_is_more_than_a_put_may_carry():
    gib = 1 << 30
    assert part_size(6 * gib, 5 * gib) == 64 << 20
    assert part_size(5000 * gib, 5 * gib) == 5 * gib
    assert part_size(50 * gib, 5 << 20) == 50 * gib // 10_000 + 1  # S3 takes no more parts


@on_a_bucket
async def test_links_of_many_files_come_by_the_page(crowd, monkeypatch):
    monkeypatch.setattr("replies.MAX_PAGE_BYTES", 5000)
    files = announced(**{f"n{number}": b"x" for number in range(20)})
    worker = crowd.worker()
    pages = [await worker("upload", folder="f", files=files)]
    while (cursor := pages[-1]["next_cursor"]) is not None:
        pages.append(await worker("upload", folder="f", files=files, cursor=cursor))
    assert len(pages) > 1
    paths = [row["path"] for page in pages for row in page["files"]]
    assert paths == [file["path"] for file in files]


# ---- in chunks, where a store has no links


@on_every_store
async def test_a_file_comes_in_chunks_through_any_workers(crowd):
    one, other = crowd.worker(), crowd.worker()
    data = bytes(range(256)) * 100
    await send_chunks(one, "f", "deep/a.bin", data[:10_000], size=3000)
    text = base64.b64encode(data[9000:]).decode()  # a chunk again, and longer
    chunk = {"path": "deep/a.bin", "offset": 9000, "data": text, "sha256": sha256(data[9000:])}
    await other("upload", folder="f", chunk=chunk)
    files = [{"path": "deep/a.bin", "size": len(data), "sha256": sha256(data)}]
    assert (await complete(other, "f", files))["total_bytes"] == len(data)
    assert (await crowd.store.get("inputs/f/deep/a.bin")).data == data
    assert (await crowd.store.list(chunks_prefix("f", "deep/a.bin"))).objects == []


async def test_a_store_without_links_says_to_send_chunks(crowd):
    """A folder is such a store."""
    [row] = (await crowd.worker()("upload", folder="f", files=announced(a=b"abc")))["files"]
    assert row == {"path": "a.bin", "via": "chunks", "part_bytes": CHUNK_BYTES}


@on_a_bucket
async def test_a_bucket_without_links_says_to_send_chunks(crowd, monkeypatch):
    lacking = Capabilities(conditional_writes=True, presign=False, multi_delete=True)

    async def capabilities():
        return lacking

    monkeypatch.setattr(crowd.store, "capabilities", capabilities)
    [row] = (await crowd.worker()("upload", folder="f", files=announced(a=b"abc")))["files"]
    assert row["via"] == "chunks"


async def test_an_empty_file_is_one_empty_chunk(crowd):
    worker = crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"")
    assert (await complete(worker, "f", announced(a=b"")))["count"] == 1


async def test_a_gap_between_chunks_is_named(crowd):
    worker = crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"abc")
    reply = await complete(worker, "f", [{"path": "a.bin", "size": 6}])
    assert reply["error"]["code"] == "upload_incomplete"
    assert "offset 3" in reply["error"]["message"]


async def test_chunks_that_are_another_file_make_none_and_can_be_sent_again(crowd):
    worker = crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"wrong")
    reply = await complete(worker, "f", announced(a=b"right"))
    assert reply["error"]["code"] == "upload_mismatch"
    assert (await listed(worker, "f"))["files"] == []
    await send_chunks(worker, "f", "a.bin", b"right")
    assert (await complete(worker, "f", announced(a=b"right")))["complete"]


async def test_a_chunk_that_was_damaged_on_its_way_is_refused(crowd):
    text = base64.b64encode(b"damaged").decode()
    chunk = {"path": "a", "offset": 0, "data": text, "sha256": sha256(b"as it was")}
    reply = await crowd.worker()("upload", folder="f", chunk=chunk)
    assert reply["error"]["code"] == "checksum_mismatch"


async def test_chunks_do_not_replace_a_file_unless_they_are_told_to(crowd):
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a", b"mine")
    chunk = {"path": "a", "offset": 0, "data": base64.b64encode(b"yours").decode()}
    reply = await worker("upload", folder="f", chunk=chunk)
    assert reply["error"]["code"] == "upload_refused"
    reply = await worker("upload", folder="f", chunk=chunk, overwrite=True)
    assert "error" not in reply


# ---- completing


@on_every_store
@pytest.mark.parametrize(
    ("file", "code"),
    [
        ({"path": "a.bin", "size": 6}, "upload_mismatch"),
        ({"path": "a.bin", "size": 5, "sha256": sha256(b"other")}, "upload_mismatch"),
        ({"path": "missing.bin", "size": 5}, "upload_incomplete"),
    ],
)
async def test_what_is_not_there_as_announced_completes_no_folder(crowd, file, code):
    """And nothing that is there is touched."""
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"12345")
    reply = await complete(worker, "f", [file])
    assert reply["error"]["code"] == code
    assert not (await listed(worker, "f"))["complete"]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"12345"


async def test_a_folder_that_nobody_brought_cannot_be_completed(crowd):
    assert (await complete(crowd.worker(), "f"))["error"]["code"] == "unknown_folder"


async def test_completing_again_keeps_the_hashes_of_files_that_are_unchanged(crowd):
    worker, folders = crowd.worker(), "inputs/f/"
    await crowd.store.put(f"{folders}a.bin", b"first")
    await complete(worker, "f", announced(a=b"first"))
    await crowd.store.put(f"{folders}b.bin", b"second")
    await complete(worker, "f")
    manifest = (await crowd.store.get(f"{folders}{OWN}/manifest.json")).data
    assert sha256(b"first").encode() in manifest
    assert sha256(b"second").encode() not in manifest  # nobody said what it is


# ---- what may not be


@pytest.mark.parametrize(
    "path",
    [
        "../a", "a/../../b", "/etc/passwd", "a//b", "./a", "a/.", "a\\b", "a\0b", "a\nb",
        "..", ".", "", "x" * 1000, "a/" + "x" * 256, "e\u0301", "\u202ea", f"{OWN}/manifest.json",
        OWN,
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["files", "chunk"])
async def test_a_path_that_leads_elsewhere_is_refused_and_nothing_is_written(crowd, path, way):
    worker = crowd.worker()
    if way == "files":
        fields = {"files": [{"path": path, "size": 1}]}
    else:
        fields = {"chunk": {"path": path, "offset": 0, "data": "eA=="}}
    reply = await worker("upload", folder="f", **fields)
    assert reply["error"]["code"] in ("invalid_request", "invalid_key")
    assert await servers.keys_of(crowd.store) == []


@pytest.mark.parametrize("folder", ["", "a/b", "..", ".", "a\0", "-a", "x" * 129, "\u00e9"])
async def test_a_folder_is_called_by_a_plain_name(crowd, folder):
    reply = await crowd.worker()("upload", folder=folder, files=announced(a=b"a"))
    assert reply["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    "paths",
    [["a", "a"], ["a", "a/b"], ["a/b/c", "a"]],
    ids=["twice", "file, folder", "folder, file"],
)
async def test_two_files_of_one_name_in_one_request_are_refused(crowd, paths):
    """Trap 25."""
    files = [{"path": path, "size": 1} for path in paths]
    reply = await crowd.worker()("upload", folder="f", files=files)
    assert reply["error"]["code"] == "invalid_request"


async def test_names_that_differ_only_in_case_are_two_files(crowd):
    worker = crowd.worker()
    for name in ("a", "A"):
        await send_chunks(worker, "f", name, name.encode())
    files = [{"path": name, "size": 1, "sha256": sha256(name.encode())} for name in ("a", "A")]
    assert (await complete(worker, "f", files))["count"] == 2


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        ({"max_upload_bytes": 4}, {"a": b"12345"}),
        ({"max_folder_bytes": 12}, {"a": b"12345", "b": b"12345"}),
        ({"max_folder_files": 2}, {"a": b"1", "b": b"2"}),
    ],
)
async def test_limits_count_what_is_there_already(crowd, limits, files):
    await crowd.store.put("inputs/f/there", b"123")
    reply = await crowd.worker(**limits)("upload", folder="f", files=announced(**files))
    assert reply["error"]["code"] == "upload_refused"
    [limit] = limits
    assert f"WORKER_{limit.upper()}" in reply["error"]["message"]


async def test_chunks_have_limits_too(crowd):
    worker = crowd.worker(max_upload_bytes=4)
    chunk = {"path": "a", "offset": 3, "data": base64.b64encode(b"12").decode()}
    reply = await worker("upload", folder="f", chunk=chunk)
    assert reply["error"]["code"] == "upload_refused"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"files": [{"path": "a", "size": -1}]},
        {"files": [{"path": "a"}]},
        {"files": [{"path": "a", "size": 1, "sha256": "ABC"}]},
        {"files": [{"path": "a", "size": 1, "content_type": "a\r\nX-Evil: 1"}]},
        {"chunk": {"path": "a", "offset": 0, "data": "not base64!"}},
        {"chunk": {"path": "a", "offset": 0, "data": "A" * 6_000_000}},
        {"chunk": {"path": "a", "offset": 0, "data": ""}, "complete": True},
        {"files": [{"path": f"f{n}", "size": 1} for n in range(1001)]},
    ],
)
async def test_a_malformed_upload_is_refused(crowd, fields):
    reply = await crowd.worker()("upload", folder="f", **fields)
    assert reply["error"]["code"] == "invalid_request"


# ---- looking


@on_every_store
async def test_input_folders_are_listed_by_the_page(crowd):
    for number in range(5):
        await crowd.store.put(f"inputs/f{number}/deep/a", b"")
    pages = await paged(crowd.worker(), "list_files", limit=2)
    assert [page["folders"] for page in pages] == [["f0", "f1"], ["f2", "f3"], ["f4"]]


@on_every_store
async def test_ten_thousand_files_are_listed_by_the_page(crowd):
    """Here a few hundred by pages of 100; the keys of a page are one request either way."""
    worker = crowd.worker()
    for number in range(250):
        await crowd.store.put(f"inputs/f/{number:05d}", b"x")
    pages = await paged(worker, "list_files", folder="f", limit=100)
    assert [len(page["files"]) for page in pages] == [100, 100, 50]
    assert len(worker.store.asked("list")) == 3


async def test_what_a_process_made_is_listed_without_links(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=2)
    reply = await worker("list_files", process_id="p")
    assert [file["path"] for file in reply["files"]] == ["artifact-1.bin", "artifact-2.bin"]
    assert "url" not in reply["files"][0]


async def test_a_folder_or_a_process_is_listed_and_not_both(crowd):
    reply = await crowd.worker()("list_files", process_id="p", folder="f")
    assert reply["error"]["code"] == "invalid_request"
