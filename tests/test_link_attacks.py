"""What the holder of a link tries: to read what is not its own, and to stop what it may not.

On Ceph RGW, which heeds headers that no link signed; on the same behind AWS's rule, where there are
links to write; and on a folder. The holder has the links of the replies, and no keys.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from typing import Any

import httpx
import pytest

from inputs.folder_files import announcements_prefix
from records.keys import cancel_key
from tests import servers
from tests.crowd import until
from tests.test_upload import PART, announced, complete, listed, send_chunks, sha256
from tests.with_inputs import given

SECRET = b"of another tenant"

pytestmark = pytest.mark.usefixtures("input_kinds")
on_buckets = pytest.mark.parametrize("crowd", ["ceph", "strict"], indirect=True)
on_all = pytest.mark.parametrize("crowd", ["local", "ceph", "strict"], indirect=True)


@pytest.fixture
def secret(ceph):
    """Headers that copy an object from outside of the worker's prefix, and its large twin's."""
    with closing(servers.client(ceph.endpoint_url, ceph.keys)) as s3:
        s3.put_object(Bucket=ceph.bucket, Key="private/secret.txt", Body=SECRET)
        s3.put_object(Bucket=ceph.bucket, Key="private/large.bin", Body=bytes(8 << 20))
    return {"x-amz-copy-source": f"/{ceph.bucket}/private/secret.txt"}


async def put_all(urls: list[str], headers: dict[str, str], body: bytes = b"") -> None:
    async with httpx.AsyncClient() as http:
        for url in urls:
            await http.put(url, headers=headers, content=body)


def links_in(rows: list[dict[str, Any]]) -> list[str]:
    return [url for row in rows for url in [*row.get("urls", []), row.get("url")] if url]


async def all_bytes(store) -> list[bytes]:
    return [(await store.get(key)).data for key in await servers.keys_of(store)]


@on_buckets
async def test_the_link_of_an_empty_file_copies_nothing(crowd, secret):
    worker = crowd.worker()
    files = [{"path": "a.txt", "size": 0}]
    rows = (await worker("upload", folder="f", files=files, overwrite=True))["files"]
    headers = rows[0].get("headers", {})
    assert bool(links_in(rows)) == (await crowd.store.capabilities()).write_links
    await put_all(links_in(rows), headers | secret)
    assert SECRET not in await all_bytes(crowd.store)
    await complete(worker, "f")
    reply = await given(worker, x="folder:f")
    assert sha256(SECRET) not in str(reply)


@on_buckets
async def test_the_links_of_parts_copy_nothing(crowd, secret):
    """Ceph RGW copies into a part that was signed as empty, and this worker signs none such."""
    worker = crowd.worker(single_put_bytes=PART)
    file = {"path": "a.bin", "size": PART + len(SECRET)}
    [row] = (await worker("upload", folder="f", files=[file]))["files"]
    assert bool(links_in([row])) == (await crowd.store.capabilities()).write_links
    await put_all(links_in([row])[:1], {}, bytes(PART))
    await put_all(links_in([row])[1:], secret)
    await put_all(links_in([row])[1:], secret, bytes(len(SECRET)))
    await complete(worker, "f", [file | {"upload_id": row.get("upload_id", "none")}])
    assert not any(SECRET in data for data in await all_bytes(crowd.store))


@on_buckets
async def test_the_link_to_cancel_copies_nothing(crowd, secret):
    worker = crowd.worker()
    start = await worker.running("p")
    links = (await worker("process_status", process_id="p"))["links"]
    assert ("cancel" in links) == (await crowd.store.capabilities()).write_links
    large = {"x-amz-copy-source": secret["x-amz-copy-source"].replace("secret.txt", "large.bin")}
    for headers in (secret, large):
        await put_all([links[name] for name in links if name == "cancel"], headers)
    assert cancel_key("p") not in await servers.keys_of(crowd.store)
    assert not start.done()


@pytest.mark.parametrize("crowd", ["ceph"], indirect=True)
async def test_where_links_would_copy_a_process_is_cancelled_by_the_action(crowd):
    worker, other = crowd.worker(), crowd.worker()
    start = await worker.running("p")
    view = await other("process_status", process_id="p")
    assert view["links"].keys() == {"status", "log"}
    assert (await other("cancel", process_id="p"))["status"] == "cancelled"
    assert (await start)["status"] == "cancelled"


@pytest.mark.parametrize("crowd", ["ceph"], indirect=True)
async def test_where_links_would_copy_files_go_in_chunks(crowd):
    worker, files = crowd.worker(), announced(a=b"12345")
    [row] = (await worker("upload", folder="f", files=files))["files"]
    assert row["via"] == "chunks"
    await send_chunks(worker, "f", "a.bin", b"12345")
    assert (await complete(worker, "f", files))["total_bytes"] == 5


@on_all
async def test_a_forged_stop_by_the_platform_stops_nothing(crowd):
    """It would look like an end after which the process goes on, and be none."""
    worker = crowd.worker(cancel_poll_seconds=0.05)
    start = await worker.running("p")
    note = json.dumps({"by": "platform", "attempt": 1, "nonce": "0" * 32})
    await crowd.store.put(cancel_key("p"), note.encode())
    worker.store.calls.clear()
    await until(lambda: sum(call.key == cancel_key("p") for call in worker.store.calls) > 2)
    assert not start.done()
    assert (await worker("process_status", process_id="p"))["status"] == "running"


# ---- what is completed is what was announced


@on_all
@pytest.mark.parametrize("there", [b"longer than it", b"other"], ids=["other size", "other bytes"])
async def test_complete_without_files_refuses_what_was_not_announced(crowd, there):
    worker, other = crowd.worker(), crowd.worker()
    await worker("upload", folder="f", files=announced(a=b"right"))
    await crowd.store.put("inputs/f/a.bin", there)
    reply = await complete(other, "f")
    assert reply["error"]["code"] == "upload_mismatch"
    assert not (await listed(other, "f"))["complete"]
    await crowd.store.put("inputs/f/a.bin", b"right")
    assert (await complete(other, "f"))["complete"]


async def test_a_hash_that_was_announced_binds_a_complete_that_leaves_it_out(crowd):
    worker = crowd.worker()
    await worker("upload", folder="f", files=announced(a=b"right"))
    await crowd.store.put("inputs/f/a.bin", b"wrong")
    reply = await complete(worker, "f", [{"path": "a.bin", "size": 5}])
    assert reply["error"]["code"] == "upload_mismatch"


async def test_the_newest_announcement_counts(crowd):
    worker = crowd.worker()
    for data in (b"first", b"second"):
        await worker("upload", folder="f", files=announced(a=data), overwrite=True)
    await crowd.store.put("inputs/f/a.bin", b"first")
    assert (await complete(worker, "f"))["error"]["code"] == "upload_mismatch"
    assert (await complete(worker, "f", announced(a=b"first")))["complete"]
    assert (await complete(worker, "f"))["complete"]  # `files` was an announcement, too


async def test_what_was_announced_of_a_completed_folder_still_binds(crowd):
    worker = crowd.worker()
    await worker("upload", folder="f", files=[{"path": "a.bin", "size": 5}])
    await crowd.store.put("inputs/f/a.bin", b"first")
    assert (await complete(worker, "f"))["complete"]
    await crowd.store.put("inputs/f/a.bin", b"longer than it")
    assert (await complete(worker, "f"))["error"]["code"] == "upload_mismatch"


async def test_an_upload_that_got_no_way_to_bring_a_file_announces_nothing(crowd):
    worker = crowd.worker()
    await worker("upload", folder="f", files=[{"path": "a.bin", "size": 5}])
    await crowd.store.put("inputs/f/a.bin", b"first")
    assert (await complete(worker, "f"))["complete"]
    [row] = (await worker("upload", folder="f", files=[{"path": "a.bin", "size": 9}]))["files"]
    assert row["via"] == "differs"
    assert (await complete(worker, "f"))["complete"]


async def test_a_file_that_was_announced_and_never_came_binds_nothing(crowd):
    worker = crowd.worker()
    await worker("upload", folder="f", files=announced(a=b"1", b=b"2"))
    await crowd.store.put("inputs/f/b.bin", b"2")
    assert (await complete(worker, "f"))["count"] == 1


# ---- what a job gets is what was completed


@on_all
@pytest.mark.parametrize("hashed", [True, False])
async def test_bytes_that_were_replaced_after_completion_reach_no_job(crowd, monkeypatch, hashed):
    """Of the same size and in the same second, which is as fine as some stores tell times."""
    worker, listing = crowd.worker(), crowd.store.list

    async def coarse(*args, **options):
        page = await listing(*args, **options)
        return page._replace(objects=[row._replace(modified=1.0) for row in page.objects])

    monkeypatch.setattr(crowd.store, "list", coarse)
    await crowd.store.put("inputs/f/a.bin", b"first")
    sums = {"sha256": sha256(b"first")} if hashed else {}
    await complete(worker, "f", [{"path": "a.bin", "size": 5, **sums}])
    await crowd.store.put("inputs/f/a.bin", b"other")
    reply = await given(worker, x="folder:f")
    assert (reply["status"], reply["failure"]["code"]) == ("failed", "input_mismatch")


@on_all
async def test_a_file_that_was_deleted_is_bound_by_no_older_announcement(crowd):
    worker = crowd.worker()
    await worker("upload", folder="f", files=announced(a=b"first"))
    await crowd.store.put("inputs/f/a.bin", b"first")
    assert (await complete(worker, "f"))["complete"]
    await worker("delete", folder="f", path="a.bin", confirm="a.bin")
    await crowd.store.put("inputs/f/a.bin", b"second")
    reply = await complete(worker, "f")
    assert reply.get("complete"), reply


@on_all
async def test_a_folder_that_was_announced_to_too_often_takes_no_more(crowd, monkeypatch):
    """`complete` reads all announcements of a folder."""
    monkeypatch.setattr("inputs.announcements.MAX_ROWS", 1)
    worker, files = crowd.worker(), announced(a=b"12345")
    await worker("upload", folder="f", files=files)
    reply = await worker("upload", folder="f", files=files)
    assert reply["error"]["code"] == "upload_refused"


@on_all
async def test_many_announcements_become_one_that_still_binds(crowd, monkeypatch):
    monkeypatch.setattr("inputs.announcements.MERGED_FROM", 3)
    worker = crowd.worker()
    for data in (b"1", b"22", b"333", b"4444"):
        await worker("upload", folder="f", files=announced(a=data, b=data), overwrite=True)
    await crowd.store.put("inputs/f/a.bin", b"4444")
    for _ in range(2):  # the rows, then the merged one
        assert (await complete(worker, "f"))["complete"]
        rows = (await crowd.store.list(announcements_prefix("f"))).objects
        assert [row.key.rpartition("/")[2] for row in rows] == ["merged"]
    await worker("upload", folder="f", files=announced(a=b"55555"), overwrite=True)
    assert (await complete(worker, "f"))["error"]["code"] == "upload_mismatch"


async def test_an_announcement_made_while_others_are_merged_stays(crowd, monkeypatch):
    monkeypatch.setattr("inputs.announcements.MERGED_FROM", 1)
    slow, other = crowd.worker(), crowd.worker()
    await slow("upload", folder="f", files=announced(a=b"1"))
    await crowd.store.put("inputs/f/a.bin", b"1")
    pause = slow.store.pause_before("create", "announced/merged")
    completing = asyncio.create_task(complete(slow, "f"))
    await pause.reached.wait()
    await other("upload", folder="f", files=announced(a=b"22"), overwrite=True)
    pause.go.set()
    assert (await completing)["complete"]
    assert (await complete(other, "f"))["error"]["code"] == "upload_mismatch"


async def test_an_announcement_that_cannot_be_read_binds_nothing_silently(crowd):
    worker, files = crowd.worker(), announced(a=b"12345")
    await worker("upload", folder="f", files=files)
    [key] = await servers.keys_of(crowd.store, announcements_prefix("f"))
    await crowd.store.put(key, b"?")
    reply = await worker("upload", folder="f", complete=True)
    assert reply["error"]["code"] == "upload_incomplete"
