"""Objects of other tools in the bucket: passed over, named, and removed with their folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from child import runner
from health.foreign import MAX_NAMED
from inputs.folder_files import is_foreign
from jobs import JOBS
from storage import InvalidKey, StorageMisconfigured
from stores.prefixes import delete_all
from tests import input_jobs
from tests.servers import client, keys_of
from tests.test_upload import complete

#: A folder takes no such objects.
from_a_console = pytest.mark.parametrize("crowd", ["ceph"], indirect=True)
#: As consoles make folders, and keys that no worker would make.
MARKERS = ("", "sub/", "sub/sub/", "a\\b", "a\u00a0b", "//", "sub//x", "e\u0301", "z/")


@pytest.fixture(autouse=True)
def _knows_the_kinds(monkeypatch):
    for name, job in input_jobs.KINDS.items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (input_jobs.__file__,))


@pytest.fixture
def console(crowd, ceph) -> Iterator[Any]:
    """Puts empty objects into the bucket of the crowd, behind the workers' backs."""
    with closing(client(ceph.endpoint_url, ceph.keys)) as s3:

        def put(*keys: str) -> None:
            for key in keys:
                s3.put_object(Bucket=ceph.bucket, Key=f"{crowd.store._prefix}{key}", Body=b"")

        yield put


@from_a_console
async def test_a_consoles_folders_are_neither_counted_nor_listed_nor_brought(crowd, console):
    worker = crowd.worker()
    console(*(f"inputs/d/{marker}" for marker in MARKERS))
    await crowd.store.put("inputs/d/a.png", b"a")
    assert (await complete(worker, "d", []))["count"] == 1
    pages = [await worker("list_files", folder="d", limit=2)]
    assert "files" in pages[0], pages
    while cursor := pages[-1]["next_cursor"]:
        pages.append(await worker("list_files", folder="d", limit=2, cursor=cursor))
        assert "files" in pages[-1], (cursor, pages[-1])
    assert [file["path"] for page in pages for file in page["files"]] == ["a.png"]
    reply = await worker("start", kind="show_inputs", inputs={"data": "folder:d"})
    assert (reply["status"], [*reply["result"]]) == ("completed", ["data/a.png"])


@from_a_console
async def test_deleting_a_folder_removes_a_consoles_folders_too(crowd, console):
    worker = crowd.worker()
    console("inputs/d/\x01", *(f"inputs/d/{marker}" for marker in MARKERS))
    await crowd.store.put("inputs/d/a.png", b"a")
    await complete(worker, "d", [])
    reply = await worker("delete", folder="d", confirm="d")
    assert "deleted" in reply, reply
    assert await keys_of(crowd.store, "inputs/") == []


@from_a_console
async def test_deleting_a_process_removes_foreign_objects_among_its_files(crowd, console):
    worker = crowd.worker()
    await worker("start", kind="write_files", process_id="p", params={"files": {"a": "a"}})
    console("processes/p/attempts/1/artifacts/", "processes/p/attempts/1/artifacts/a\\b")
    other = crowd.worker()
    assert [file["path"] for file in (await other("download", process_id="p"))["files"]] == ["a"]
    assert "deleted" in await other("delete", process_id="p", confirm="p")
    assert await keys_of(crowd.store, "processes/p/attempts/") == []


@from_a_console
async def test_foreign_names_end_no_list_of_folders(crowd, console):
    console("inputs/", "inputs/a\\b/c", "inputs/d\u00a0/x", "inputs/stray", "inputs//x")
    await crowd.store.put("inputs/e/a.png", b"a")
    worker, cursor, names = crowd.worker(), None, []
    for _ in range(9):
        page = await worker("list_files", limit=1, **({"cursor": cursor} if cursor else {}))
        names += page["folders"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert cursor is None
    assert names == ["e"]


@from_a_console
async def test_health_names_foreign_objects_and_stays_ready(crowd, console):
    worker = crowd.worker()
    await crowd.store.put("inputs/d/a.png", b"a")
    before = await worker("health")
    console("inputs/d/", "inputs/d/sub/", *(f"inputs/d/{number}/" for number in range(MAX_NAMED)))
    after = await worker("health")
    assert after["status"] == before["status"]
    assert len(after["store"]["foreign_objects"]) == MAX_NAMED
    assert "inputs/d/" in after["store"]["foreign_objects"]


@pytest.mark.parametrize(
    ("key", "foreign"),
    [
        ("inputs/d/a.png", False),
        ("inputs/d/.worker/manifest.json", False),
        ("inputs/d/", True),
        ("inputs/", True),
        ("inputs/stray", True),
        ("inputs/d/a\\b", True),
        ("inputs/-d/a", True),
    ],
)
def test_an_object_is_foreign_if_no_folder_and_path_lead_to_it(key, foreign):
    assert is_foreign(key) == foreign


@from_a_console
async def test_an_object_that_stays_does_not_keep_the_others(crowd, monkeypatch):
    """A lock on an object, say."""
    real = crowd.store.delete

    async def delete(keys):
        if "inputs/d/locked" in keys:
            raise StorageMisconfigured("it is locked")
        await real(keys)

    for name in ("a", "locked", "z"):
        await crowd.store.put(f"inputs/d/{name}", b"")
    monkeypatch.setattr(crowd.store, "delete", delete)
    with pytest.raises(StorageMisconfigured, match="inputs/d/locked"):
        await delete_all(crowd.store, "inputs/d/")
    assert await keys_of(crowd.store, "inputs/d/") == ["inputs/d/locked"]


async def test_a_key_that_leads_elsewhere_in_a_url_is_not_deleted(crowd):
    with pytest.raises(InvalidKey):
        await crowd.store.delete(["inputs/d/../e/x"])
