"""What processes made: links by the page, many processes at once, stretches of a file."""

import asyncio
import base64
import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from records.manifest import artifact_key
from records.replies import MAX_REPLY_BYTES
from tests.crowd import on_every_store


def fetched(url):
    """What a link leads to, as anyone would fetch it."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).read_bytes()
    return httpx.get(url).raise_for_status().content


async def paged(call, action, **fields):
    """The replies of all pages."""
    replies = [await call(action, **fields)]
    while cursor := replies[-1]["next_cursor"]:
        replies.append(await call(action, cursor=cursor, **fields))
    return replies


# ---- one process


@on_every_store
async def test_a_link_is_saved_under_the_name_of_its_file(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1, artifact_bytes=7)
    [file] = (await worker("download", process_id="p", expires_in=60))["files"]
    assert file["filename"] == "artifact-1.bin"
    assert len(fetched(file["url"])) == file["size"] == 7
    if file["url"].startswith("http"):
        disposition = httpx.get(file["url"]).headers["content-disposition"]
        assert 'filename="artifact-1.bin"' in disposition


@pytest.mark.parametrize("seconds", [59, 7 * 86400 + 1])
async def test_a_link_lives_for_a_minute_to_a_week(crowd, seconds):
    reply = await crowd.worker()("download", process_id="p", expires_in=seconds)
    assert reply["error"]["code"] == "invalid_request"


async def test_a_path_and_a_pattern_are_two_ways_to_choose(crowd):
    reply = await crowd.worker()("download", process_id="p", path="a", pattern="*")
    assert reply["error"]["code"] == "invalid_request"


async def test_links_come_by_the_page_and_none_is_left_out(crowd, monkeypatch):
    monkeypatch.setattr("api.files.MAX_ROWS", 3)
    worker = crowd.worker()
    await worker.start("p", artifacts=8)
    pages = await paged(worker, "download", process_id="p")
    paths = [file["path"] for page in pages for file in page["files"]]
    assert [len(page["files"]) for page in pages] == [3, 3, 2]
    assert paths == sorted(f"artifact-{n}.bin" for n in range(1, 9))


@on_every_store
async def test_who_does_not_own_a_running_process_offers_what_it_has_stored_so_far(crowd):
    owner, other = crowd.worker(), crowd.worker()
    running = await owner.running("p", artifacts=2)
    await other.until("p", lambda view: view["artifacts"]["count"] == 2)
    files = (await other("download", process_id="p"))["files"]
    assert [len(fetched(file["url"])) for file in files] == [16, 16]
    mine = (await owner("download", process_id="p"))["files"]
    assert [file["sha256"] for file in files] == [file["sha256"] for file in mine]
    await owner("cancel", process_id="p")
    await running


async def test_a_cancelled_process_offers_what_exists(crowd):
    owner, other = crowd.worker(), crowd.worker()
    running = await owner.running("p", artifacts=2)
    await owner.until("p", lambda view: view["artifacts"]["count"] == 2)
    await owner("cancel", process_id="p")
    await running
    for worker in (owner, other):
        assert len((await worker("download", process_id="p"))["files"]) == 2


# ---- many processes


async def made(worker, processes, artifacts):
    names = [f"p{number}" for number in range(processes)]
    await asyncio.gather(*(worker.start(name, artifacts=artifacts) for name in names))
    return names


@on_every_store
async def test_bulk_download_offers_the_files_of_many_processes(crowd):
    worker = crowd.worker(slots=4)
    names = await made(worker, 3, 2)
    reply = await worker("bulk_download", process_ids=names)
    assert [each["process_id"] for each in reply["processes"]] == names
    for each in reply["processes"]:
        assert [len(fetched(file["url"])) for file in each["files"]] == [16, 16]
    assert reply["next_cursor"] is None


@on_every_store
async def test_ten_processes_of_twenty_files_cost_ten_requests_and_then_none(crowd):
    names = await made(crowd.worker(slots=4), 10, 20)
    other = crowd.worker()
    for most in (10, 0):
        other.store.forget_calls()
        reply = await other("bulk_download", process_ids=names)
        assert sum(len(each["files"]) for each in reply["processes"]) == 200
        assert len(other.store.calls) <= most


async def test_many_files_cost_one_read_of_the_manifest_more_and_then_none(crowd):
    await crowd.worker().start("p", artifacts=150)
    other = crowd.worker()
    for most in (2, 0):
        other.store.forget_calls()
        reply = await other("bulk_download", process_ids=["p"])
        assert len(reply["processes"][0]["files"]) == 150
        assert len(other.store.calls) == most


async def test_an_unknown_process_is_a_row_that_says_so_and_not_the_end_of_the_whole(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    reply = await worker("bulk_download", process_ids=["nobody", "p"])
    assert "error" not in reply
    assert [(each["status"], len(each["files"])) for each in reply["processes"]] == [
        ("not_found", 0),
        ("completed", 1),
    ]


async def test_a_store_that_is_away_is_no_row_that_says_not_found(crowd):
    worker = crowd.worker()
    worker.store.away = True
    reply = await worker("bulk_download", process_ids=["p"])
    assert reply["error"]["code"] == "storage_unavailable"


async def test_bulk_pages_go_on_in_the_middle_of_a_process(crowd, monkeypatch):
    monkeypatch.setattr("api.files.MAX_ROWS", 4)
    worker = crowd.worker(slots=4)
    names = [*await made(worker, 3, 3), "nobody"]
    pages = await paged(worker, "bulk_download", process_ids=names)
    assert [
        [(each["process_id"], len(each["files"])) for each in page["processes"]] for page in pages
    ] == [[("p0", 3), ("p1", 1)], [("p1", 2), ("p2", 2)], [("p2", 1), ("nobody", 0)]]


async def test_bulk_pages_leave_out_no_process_however_they_are_cut(crowd, monkeypatch):
    """A first process of several pages, and more processes than are looked up at a time."""
    monkeypatch.setattr("api.files.MAX_ROWS", 4)
    monkeypatch.setattr("api.files.AT_ONCE", 3)
    worker = crowd.worker(slots=4)
    await worker.start("large", artifacts=6)
    names = ["large", *await made(worker, 7, 1)]
    pages = await paged(worker, "bulk_download", process_ids=names)
    told = [each["process_id"] for page in pages for each in page["processes"]]
    assert list(dict.fromkeys(told)) == names
    assert sum(len(each["files"]) for page in pages for each in page["processes"]) == 13


@pytest.mark.parametrize("process_ids", [[], ["a/b"], [""], [7], [f"p{n}" for n in range(51)]])
async def test_bulk_takes_one_to_fifty_ids(crowd, process_ids):
    reply = await crowd.worker()("bulk_download", process_ids=process_ids)
    assert reply["error"]["code"] == "invalid_request"


async def test_a_cursor_of_another_request_is_refused(crowd):
    reply = await crowd.worker()("bulk_download", process_ids=["a"], cursor="b/x")
    assert reply["error"]["code"] == "invalid_request"


# ---- the 8 MB rule


async def test_no_reply_is_too_large_whatever_the_names_are_called(crowd, tmp_path):
    """Each name is as long as a key lets it be, and each character is six in JSON."""
    owner = crowd.worker()
    await owner.start("p")
    record = await crowd.record("p")
    store, path = crowd.store, tmp_path / "file"
    path.write_bytes(b"x")
    folder = "/".join(["\u00e9" * 120] * 3)
    for number in range(1100):
        await store.put(artifact_key("q", 1, f"{folder}/{number:04d}"), b"")
    record = record.model_copy(update={"process_id": "q", "files": None, "attempt": 1})
    await store.create("processes/q/record.json", record.encode())
    for action in ("download", "list_files"):
        pages = await paged(owner, action, process_id="q")
        assert sum(len(page["files"]) for page in pages) == 1100
        assert all(
            len(str(page).encode("ascii", "backslashreplace")) < MAX_REPLY_BYTES for page in pages
        )


# ---- download_file


@on_every_store
async def test_a_file_can_be_read_in_stretches_without_any_link(crowd):
    """The loop of the README."""
    worker = crowd.worker()
    await worker.start("p", artifacts=1, artifact_bytes=1000)
    data, offset = b"", 0
    while offset is not None:
        reply = await worker(
            "download_file", process_id="p", path="artifact-1.bin", offset=offset, length=300
        )
        chunk = base64.b64decode(reply["data"])
        assert hashlib.sha256(chunk).hexdigest() == reply["sha256"]
        data, offset = data + chunk, reply["next_offset"]
    assert len(data) == reply["size"] == 1000
    assert hashlib.sha256(data).hexdigest() == reply["file_sha256"]


async def test_an_empty_file_has_one_empty_stretch(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1, artifact_bytes=0)
    reply = await worker("download_file", process_id="p", path="artifact-1.bin")
    assert (reply["data"], reply["size"], reply["next_offset"]) == ("", 0, None)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"path": "artifact-1.bin", "offset": 17}, "invalid_request"),
        ({"path": "artifact-1.bin", "offset": -1}, "invalid_request"),
        ({"path": "artifact-1.bin", "length": (4 << 20) + 1}, "invalid_request"),
        ({"path": "artifact-1.bin", "length": 0}, "invalid_request"),
        ({"path": "nothing"}, "unknown_artifact"),
        ({"path": "../manifest.json"}, "invalid_request"),
        ({"path": "/etc/passwd"}, "invalid_request"),
        ({"path": "a\0b"}, "invalid_request"),
        ({"path": "..%2fmanifest.json"}, "unknown_artifact"),
        ({"path": "..\\manifest.json"}, "unknown_artifact"),
        ({"path": "\uff0e\uff0e/manifest.json"}, "unknown_artifact"),
        ({"path": "x" * 701}, "invalid_request"),
    ],
)
async def test_a_stretch_lies_within_an_artifact_or_is_refused(crowd, fields, code):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    reply = await worker("download_file", process_id="p", **fields)
    assert reply["error"]["code"] == code


async def test_a_file_that_was_replaced_while_it_was_read_is_noticed(crowd):
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    await crowd.store.put(artifact_key("p", 1, "artifact-1.bin"), b"short")
    reply = await worker("download_file", process_id="p", path="artifact-1.bin")
    assert reply["error"]["code"] == "checksum_mismatch"
