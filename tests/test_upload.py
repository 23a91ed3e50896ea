"""What callers bring: in chunks where a store has no links, and what may not be; what is there.

Files by links are in `test_upload_links`, completing in `test_complete`.
"""

import asyncio
import base64
import hashlib

import httpx
import pytest

from inputs.folder_files import CHUNK_BYTES, OWN, chunks_prefix
from storage import Capabilities
from tests import servers
from tests.crowd import on_every_store
from tests.test_download import paged

#: One with links to write.
on_a_bucket = pytest.mark.parametrize("crowd", ["strict"], indirect=True)
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


async def complete(worker, folder, files=(), **fields):
    return await worker("upload", folder=folder, files=list(files), complete=True, **fields)


async def links_by_the_page(worker, folder, files):
    pages = [await worker("upload", folder=folder, files=files)]
    while (cursor := pages[-1]["next_cursor"]) is not None:
        pages.append(await worker("upload", folder=folder, files=files, cursor=cursor))
    return pages


async def listed(worker, folder):
    return await worker("list_files", folder=folder)


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
    lacking = Capabilities(
        conditional_writes=True, presign=False, multi_delete=True, write_links=False
    )

    async def capabilities(**_asked):
        return lacking

    monkeypatch.setattr(crowd.store, "capabilities", capabilities)
    [row] = (await crowd.worker()("upload", folder="f", files=announced(a=b"abc")))["files"]
    assert row["via"] == "chunks"


@pytest.mark.parametrize("text", ["QQ=", "Q!U@J#D", "--__QUJD", "QQ==QUJD", "QUJD\n", 7, None])
async def test_what_is_not_base64_to_the_letter_is_refused(crowd, text):
    reply = await crowd.worker()(
        "upload", folder="f", chunk={"path": "a", "offset": 0, "data": text}
    )
    assert reply["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("again", [b"12", b"123456"], ids=["shorter", "longer"])
async def test_a_chunk_sent_again_while_the_file_is_put_together_makes_no_file(crowd, again):
    worker, other = crowd.worker(), crowd.worker()
    await send_chunks(worker, "f", "a.bin", b"12345")
    pause = worker.store.pause_before("get", "chunks")
    completing = asyncio.create_task(complete(worker, "f", [{"path": "a.bin", "size": 5}]))
    await pause.reached.wait()
    await send_chunks(other, "f", "a.bin", again)
    pause.go.set()
    assert (await completing)["error"]["code"] == "upload_incomplete"
    assert (await listed(worker, "f"))["files"] == []
    await send_chunks(other, "f", "a.bin", b"12345")
    assert (await complete(worker, "f", announced(a=b"12345")))["complete"]


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


# ---- what may not be


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "./a",
        "a/.",
        "a\0b",
        "\ud800",
        "..",
        ".",
        "",
        "x/" * 512 + "x",
        "a/" + "x" * 256,
        f"{OWN}/manifest.json",
        OWN,
    ],
)
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
    [["a", "a"], ["a", "a/b"], ["a/b/c", "a"], ["a", "a-b", "a/b"]],
    ids=["twice", "file, folder", "folder, file", "one between"],
)
async def test_two_files_of_one_name_in_one_request_are_refused(crowd, paths):
    """Trap 25."""
    files = [{"path": path, "size": 1} for path in paths]
    reply = await crowd.worker()("upload", folder="f", files=files)
    assert reply["error"]["code"] == "invalid_request"


async def test_ten_thousand_files_are_announced_at_once(crowd):
    """However deep they lie: names are compared with their neighbours, not with their folders."""
    files = [{"path": "a/" * 300 + f"{number}", "size": 1} for number in range(10_000)]
    pages = await links_by_the_page(crowd.worker(), "f", files)
    assert sum(len(page["files"]) for page in pages) == 10_000


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


async def test_limits_count_what_is_there_also_when_it_may_be_overwritten(crowd):
    await crowd.store.put("inputs/f/there", b"123")
    worker = crowd.worker(max_folder_bytes=7)
    for files, code in ((announced(a=b"12345"), "upload_refused"), (announced(a=b"1234"), None)):
        reply = await worker("upload", folder="f", files=files, overwrite=True)
        assert reply.get("error", {}).get("code") == code


@pytest.mark.parametrize(
    ("limits", "chunks"),
    [
        ({"max_upload_bytes": 4}, [("a", 3)]),
        ({"max_upload_bytes": 4}, [("a", 0), ("a", 1), ("a", 2)]),
        ({"max_folder_bytes": 7}, [("a", 0), ("b", 0), ("c", 0)]),
        ({"max_folder_files": 3}, [("a", 0), ("b", 0), ("c", 0)]),
    ],
    ids=["too long", "over one another", "too much", "too many"],
)
async def test_chunks_have_limits_too(crowd, limits, chunks):
    """Nobody may fill the store with chunks that he never completes. The last is one too many."""
    await crowd.store.put("inputs/f/there", b"12")
    worker = crowd.worker(**limits)
    replies = [
        await worker("upload", folder="f", chunk={"path": path, "offset": at, "data": "MTI="})
        for path, at in chunks
    ]
    assert all("error" not in reply for reply in replies[:-1])
    assert replies[-1]["error"]["code"] == "upload_refused"


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
        {"files": [{"path": f"f{n}", "size": 1} for n in range(10_001)]},
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
