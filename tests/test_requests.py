"""How many requests each action sends to a bucket, counted by a proxy before a real server."""

import asyncio

import pytest

from tests.crowd import Crowd
from tests.servers import open_place


@pytest.fixture
async def crowd(proxy, ceph, tmp_path):
    crowd = Crowd(open_place({**ceph.place(), "endpoint_url": proxy.url}), tmp_path)
    await crowd.store.capabilities()  # found out once for a worker's life
    yield crowd
    await crowd.close()


async def test_a_bulk_of_ten_processes_of_twenty_files_is_ten_gets_and_then_nothing(crowd, proxy):
    names = [f"p{number}" for number in range(10)]
    worker = crowd.worker(slots=4)
    await asyncio.gather(*(worker.start(name, artifacts=20) for name in names))
    other = crowd.worker()
    for expected in ({"GetObject": 10}, {}):
        proxy.asked.clear()
        reply = await other("bulk_download", process_ids=names)
        assert sum(len(each["files"]) for each in reply["processes"]) == 200
        assert proxy.requests == expected


async def test_a_page_of_links_is_one_get_and_then_nothing(crowd, proxy):
    await crowd.worker().start("p", artifacts=50)
    other = crowd.worker()
    for expected in ({"GetObject": 1}, {}):
        proxy.asked.clear()
        await other("download", process_id="p")
        assert proxy.requests == expected


async def one_that_has_touched(crowd, folder):
    """That a folder is used is written down once an hour, in two small writes."""
    worker = crowd.worker()
    await worker("upload", folder=folder, files=[{"path": "0.bin", "size": 1}])
    return worker


async def test_links_to_upload_are_two_requests_and_nothing_a_file(crowd, proxy):
    files = [{"path": f"{number}.bin", "size": 1} for number in range(100)]
    worker = await one_that_has_touched(crowd, "f")
    proxy.asked.clear()
    await worker("upload", folder="f", files=files)
    assert proxy.requests == {"ListObjectsV2": 1, "PutObject": 1}  # what was announced is kept


async def test_a_hundred_files_are_completed_for_a_handful_of_requests(crowd, proxy):
    files = [{"path": f"{number}.bin", "size": 1} for number in range(100)]
    await asyncio.gather(*(crowd.store.put(f"inputs/f/{file['path']}", b"x") for file in files))
    worker = await one_that_has_touched(crowd, "f")
    proxy.asked.clear()
    reply = await worker("upload", folder="f", files=files, complete=True)
    assert reply["count"] == 100
    # a PUT of what is announced, a GET and a PUT of the manifest
    assert proxy.requests == {"ListObjectsV2": 2, "GetObject": 1, "PutObject": 2}


async def test_a_page_of_input_folders_is_one_list(crowd, proxy):
    for number in range(3):
        await crowd.store.put(f"inputs/f{number}/a", b"")
    proxy.asked.clear()
    reply = await crowd.worker()("list_files")
    assert len(reply["folders"]) == 3
    assert proxy.requests == {"ListObjectsV2": 1}


async def test_small_files_are_archived_at_one_get_each(crowd, proxy):
    await crowd.worker().start("p", artifacts=20)
    proxy.asked.clear()
    other = crowd.worker()
    await other("bulk_download", archive=True, process_id="zip", process_ids=["p"])
    assert len(other.store.asked("get_range")) == 20
    assert len(other.store.asked("get", key="processes/p/")) == 1
    assert "HeadObject" not in proxy.requests
