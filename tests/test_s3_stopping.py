"""Transfers that are cancelled: bounded, although the store is silent, and nothing stays behind.

On Ceph RGW, through a proxy.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from storage import ObjectNotFound
from stores.s3.store import S3Store
from tests.crowd import until
from tests.faulty_s3 import Fault, FaultyS3, always, once
from tests.patience import PATIENCE
from tests.servers import upload_file
from tests.test_s3_transfer import a_part, unfinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.faulty_s3 import Asked
    from tests.servers import Place, S3Server

MIB = 1 << 20
#: No silence is as long: a thread that ends was told to.
NEVER = 3600.0


@pytest.fixture
def place(ceph: S3Server, proxy: FaultyS3) -> Place:
    return {**ceph.place(), "endpoint_url": proxy.url}


@pytest.fixture
async def store(place: Place, proxy: FaultyS3) -> AsyncIterator[S3Store]:
    store = S3Store(**place, read_timeout=1.0, transfer_timeout=NEVER)  # type: ignore[arg-type]
    yield store
    proxy.rule = lambda _: None
    proxy.release()
    await store.close()


def a_large_file(folder: Path, size: int) -> Path:
    path = folder / "large"
    with path.open("wb") as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "big") + bytes(MIB - 8))
    return path


async def no_thread_is_left(store: S3Store) -> None:
    """A closed store's threads end as soon as they have nothing to do."""
    await store.close()
    async with asyncio.timeout(PATIENCE):
        await until(lambda: not any(each.name.startswith("s3-") for each in threading.enumerate()))


def abort(asked: Asked) -> bool:
    return asked.method == "DELETE" and "uploadId=" in asked.path


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE):
            await task


@pytest.mark.parametrize("size", [96 * MIB, pytest.param(1 << 30, marks=pytest.mark.big)])
async def test_a_cancel_in_the_middle_leaves_no_object_no_upload_and_no_thread(
    ceph: S3Server, tmp_path: Path, size: int
) -> None:
    before = unfinished(ceph)
    store = S3Store(**ceph.place())  # type: ignore[arg-type]
    file, gone = a_large_file(tmp_path, size), asyncio.Event()
    uploading = upload_file(store, file, "a", on_bytes=lambda _: gone.set())
    task = asyncio.create_task(uploading)
    await gone.wait()
    await cancelled(task)
    assert unfinished(ceph) == before
    with pytest.raises(ObjectNotFound):
        await store.get("a")
    await no_thread_is_left(store)


@pytest.mark.parametrize("silent", [Fault.SILENT, Fault.SILENT_AFTER])
async def test_a_thread_that_waits_for_a_silent_store_ends_with_its_upload(
    ceph: S3Server, store: S3Store, proxy: FaultyS3, tmp_path: Path, silent: Fault
) -> None:
    before = unfinished(ceph)
    proxy.rule = always(silent, a_part)
    task = asyncio.create_task(upload_file(store, a_large_file(tmp_path, 24 * MIB), "a"))
    await asyncio.to_thread(proxy.silenced.wait)
    await cancelled(task)
    assert unfinished(ceph) == before
    await no_thread_is_left(store)


async def test_a_thread_that_waits_for_a_silent_store_ends_with_its_download(
    store: S3Store, proxy: FaultyS3, tmp_path: Path
) -> None:
    await upload_file(store, a_large_file(tmp_path, 24 * MIB), "a")
    proxy.rule = always(Fault.SILENT, a_part)
    task = asyncio.create_task(store.download("a", tmp_path / "new" / "got"))
    await asyncio.to_thread(proxy.silenced.wait)
    await cancelled(task)
    assert list((tmp_path / "new").iterdir()) == []
    await no_thread_is_left(store)


async def test_parts_that_a_silent_store_keeps_are_named_in_the_log(
    store: S3Store, proxy: FaultyS3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.rule = always(Fault.SILENT, lambda asked: a_part(asked) or abort(asked))
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(upload_file(store, a_large_file(tmp_path, 24 * MIB), "a"))
        await asyncio.to_thread(proxy.silenced.wait)
        await cancelled(task)
        await until(lambda: bool(caplog.records))
    (upload,) = {
        asked.path.partition("uploadId=")[2].partition("&")[0]
        for asked in proxy.asked
        if abort(asked)
    }
    (record,) = caplog.records
    assert vars(record)["key"].endswith("/a")
    assert vars(record)["upload_id"] == upload.replace("%7E", "~")
    assert sum(map(abort, proxy.asked)) == 2


async def test_an_abort_that_gets_lost_is_repeated(
    ceph: S3Server, store: S3Store, proxy: FaultyS3, tmp_path: Path
) -> None:
    before, gone = unfinished(ceph), asyncio.Event()
    proxy.rule = once(Fault.LOST_REQUEST, abort)
    file = a_large_file(tmp_path, 96 * MIB)
    task = asyncio.create_task(upload_file(store, file, "a", on_bytes=lambda _: gone.set()))
    await gone.wait()
    await cancelled(task)
    await until(lambda: any(abort(asked) for asked, _ in proxy.done))
    assert sum(map(abort, proxy.asked)) == 2
    assert unfinished(ceph) == before


async def test_an_upload_that_begins_after_all_waiting_is_thrown_away(
    ceph: S3Server, store: S3Store, proxy: FaultyS3, tmp_path: Path
) -> None:
    """The store answers when the cancelled task is gone: only the thread knows the upload's id."""
    before = unfinished(ceph)
    proxy.rule = once(Fault.HELD, lambda asked: asked.path.endswith("?uploads"))
    task = asyncio.create_task(upload_file(store, a_large_file(tmp_path, 24 * MIB), "a"))
    await asyncio.to_thread(proxy.silenced.wait)
    await cancelled(task)
    assert not any(map(abort, proxy.asked))
    proxy.release()
    await until(lambda: any(abort(asked) for asked, _ in proxy.done))
    assert unfinished(ceph) == before


async def test_a_stop_does_not_end_the_request_that_follows_on_the_same_connection(
    store: S3Store, proxy: FaultyS3, tmp_path: Path
) -> None:
    """Connections are kept. A transfer that is over has no hold on the next one."""
    await store.put("a", bytes(1000))
    for number in range(5):
        await store.download("a", tmp_path / str(number))
    assert sum(asked.method == "GET" for asked in proxy.asked) == 5


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "alive"])
def test_a_process_ends_while_transfers_are_under_way(
    place: Place, proxy: FaultyS3, tmp_path: Path, silent: bool
) -> None:
    if silent:
        proxy.rule = always(Fault.SILENT, a_part)
    file = a_large_file(tmp_path, 64 * MIB)
    code = f"""
import asyncio, sys
from pathlib import Path
from stores.s3.store import S3Store
from tests.servers import upload_file

async def main():
    store = S3Store(**{json.dumps(place).replace("null", "None")}, read_timeout=1.0, transfer_timeout={NEVER})
    await store.capabilities()
    uploads = [asyncio.create_task(upload_file(store, Path({str(file)!r}), str(n))) for n in range(3)]
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if silent:
            proxy.silenced.wait()
        _, said = process.communicate("leave\n", timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "Traceback" not in said
