"""Files that callers bring by links: one PUT, or many for a big one."""

import asyncio
import os
import re
from pathlib import Path

import httpx
import pytest

from inputs.folder_files import Announced, UploadRefused, link_part_bytes
from storage import Capabilities
from tests.test_upload import PART, announced, complete, links_by_the_page, listed, on_a_bucket, put

README = Path(__file__).parent.parent / "README.md"


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
        ("a.bin", 5),
        ("b.bin", 0),
    ]


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
async def test_a_second_put_to_a_link_replaces_nothing(crowd):
    """412 says that it is there: also to a caller whose first PUT arrived, but not its answer."""
    files = [{"path": "a.bin", "size": 5}]
    [row] = (await crowd.worker()("upload", folder="f", files=files))["files"]
    assert row["headers"]["If-None-Match"] == "*"
    statuses = [(await put(row, data)).status_code for data in (b"first", b"again")]
    assert statuses == [200, 412]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"first"


@on_a_bucket
async def test_a_link_to_overwrite_replaces(crowd):
    files = [{"path": "a.bin", "size": 5}]
    [row] = (await crowd.worker()("upload", folder="f", files=files, overwrite=True))["files"]
    assert "If-None-Match" not in row["headers"]
    statuses = [(await put(row, data)).status_code for data in (b"first", b"again")]
    assert statuses == [200, 200]
    assert (await crowd.store.get("inputs/f/a.bin")).data == b"again"


@on_a_bucket
async def test_where_a_bucket_cannot_only_create_no_link_asks_it_to(crowd, monkeypatch):
    lacking = Capabilities(
        conditional_writes=False, presign=True, multi_delete=True, write_links=True
    )

    async def capabilities(**_asked):
        return lacking

    monkeypatch.setattr(crowd.store, "capabilities", capabilities)
    [row] = (await crowd.worker()("upload", folder="f", files=announced(a=b"abc")))["files"]
    assert "If-None-Match" not in row["headers"]
    assert (await put(row, b"abc")).is_success


@on_a_bucket
async def test_the_curl_of_the_readme_puts_a_file(crowd, tmp_path):
    """As it stands there, with the headers of the row."""
    [command] = re.findall(r"^(curl .* \"\$URL\")$", README.read_text(), re.MULTILINE)
    (tmp_path / "1.png").write_bytes(b"a picture")
    files = [{"path": "a/1.png", "size": 9}]
    [row] = (await crowd.worker()("upload", folder="f", files=files))["files"]
    for name, value in row["headers"].items():
        assert name == "Content-Length" or f"-H '{name}: {value}'" in command
    curl = await asyncio.create_subprocess_shell(
        command, cwd=tmp_path, env={**os.environ, "URL": row["url"]}
    )
    assert await curl.wait() == 0
    assert (await crowd.store.get("inputs/f/a/1.png")).data == b"a picture"


@on_a_bucket
async def test_a_file_that_is_there_is_left_alone_unless_it_is_to_be_overwritten(crowd):
    """Trap 24: an upload never removes anything."""
    worker = crowd.worker()
    await crowd.store.put("inputs/f/a.bin", b"mine")
    await crowd.store.put("inputs/f/other.bin", b"mine too")
    files = announced(a=b"like", b=b"new", other=b"another size")
    rows = (await worker("upload", folder="f", files=files))["files"]
    assert [(row["path"], row["via"]) for row in rows] == [
        ("a.bin", "exists"),
        ("b.bin", "put"),
        ("other.bin", "differs"),
    ]
    assert "url" not in rows[0]
    rows = (await worker("upload", folder="f", files=files, overwrite=True))["files"]
    assert [row["via"] for row in rows] == ["put", "put", "put"]
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
    assert link_part_bytes(Announced("a", 6 * gib), 5 * gib) == 64 << 20
    assert link_part_bytes(Announced("a", 500 * gib), 5 * gib) == gib
    assert link_part_bytes(Announced("a", 2 * gib), 5 << 20) == 5 << 20
    with pytest.raises(UploadRefused, match="WORKER_SINGLE_PUT_BYTES"):
        link_part_bytes(Announced("a", 3 * gib), 5 << 20)


@on_a_bucket
async def test_links_of_many_files_come_by_the_page(crowd, monkeypatch):
    monkeypatch.setattr("records.replies.MAX_PAGE_BYTES", 5000)
    files = announced(**{f"n{number}": b"x" for number in range(20)})
    worker = crowd.worker()
    pages = await links_by_the_page(worker, "f", files)
    assert len(pages) > 1
    paths = [row["path"] for page in pages for row in page["files"]]
    assert paths == [file["path"] for file in files]


@on_a_bucket
async def test_a_page_that_is_full_begins_no_upload_that_it_does_not_tell_of(crowd, monkeypatch):
    """Nobody could finish it, and its parts would be the bucket's to remove."""
    monkeypatch.setattr("records.replies.MAX_PAGE_BYTES", 20_000)
    worker = crowd.worker(single_put_bytes=PART)
    files = [{"path": f"{number:02d}.bin", "size": PART + 1} for number in range(20)]
    pages = await links_by_the_page(worker, "f", files)
    assert len(pages) > 1
    assert sum(len(page["files"]) for page in pages) == 20
    assert len(worker.store.asked("presign_parts")) == 20


@on_a_bucket
async def test_no_page_of_links_is_empty(crowd, monkeypatch):
    """It would be asked for again for ever."""
    monkeypatch.setattr("records.replies.MAX_PAGE_BYTES", 10)
    worker = crowd.worker(single_put_bytes=PART)
    files = [{"path": "big.bin", "size": PART + 1}, {"path": "small.bin", "size": 1}]
    pages = await links_by_the_page(worker, "f", files)
    assert [len(page["files"]) for page in pages] == [1, 1]
