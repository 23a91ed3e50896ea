"""Fixtures that more than one module uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# The bench brings awscrt, which would sign in boto3's place; the worker does not install it. boto3
# looks when it is imported.
os.environ["BOTO_DISABLE_CRT"] = "true"
# Several tests run side by side: OpenMP's threads would spin for cores that others use. Children
# have this from their worker; torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from child import runner
from jobs import JOBS
from tests import input_jobs, servers
from tests.control_plane import ControlPlane
from tests.crowd import Crowd
from tests.endpoint import Endpoint
from tests.faulty_s3 import FaultyS3, unsigned
from tests.fleet import Fleet
from tests.web_server import Reply, WebServer
from worker.beneath import opened, remove_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from storage import Store
    from tests.servers import Place, S3Server


@pytest.fixture
def removed_however_deep(tmp_path: Path) -> Iterator[None]:
    """Removes what a failed test leaves: pytest's own clean-up fails on very deep folders, and so
    would every later run on this machine."""
    yield
    with opened(tmp_path) as within:
        for path in list(tmp_path.iterdir()):
            remove_tree(path.name, within)


# ---- stores. A server starts when the first test asks for it, and serves all that follow.
# `@pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)` chooses other stores.


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A moto server: for functions, not for races or security."""
    with servers.run_moto() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    """A Ceph RGW server: the real thing."""
    with servers.run_ceph() as server:
        yield server


@pytest.fixture(scope="session")
def strict(ceph: S3Server) -> Iterator[S3Server]:
    """Ceph RGW behind AWS's rule about links, so that it has links to write to."""
    with FaultyS3(ceph.endpoint_url) as proxy:
        proxy.rule = unsigned
        yield ceph._replace(endpoint_url=proxy.url)


@pytest.fixture
def proxy(ceph: S3Server) -> Iterator[FaultyS3]:
    """What breaks, on its way to Ceph RGW, what it is told to."""
    with FaultyS3(ceph.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(params=servers.STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where an empty store is: each kind in turn."""
    if request.param == "local":
        return {"root": str(tmp_path / "store")}
    if request.param == "url":
        return servers.place_from_url(servers.TEST_S3_URL)
    server: S3Server = request.getfixturevalue(request.param)
    return server.place()


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    """An empty store of each kind in turn."""
    store = servers.open_place(place)
    yield store
    page = await store.list("")
    while page.objects:
        await store.delete([row.key for row in page.objects])
        page = await store.list("")
    await store.close()


@pytest.fixture
async def crowd(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Crowd]:
    """Several workers that share a folder; with `crowd.on_every_store` also a bucket."""
    server = getattr(request, "param", "local")
    there = {"root": str(tmp_path / "store")}
    if server != "local":
        there = request.getfixturevalue(server).place()
    crowd = Crowd(servers.open_place(there), tmp_path)
    yield crowd
    await crowd.close()


@pytest.fixture(params=["local", "ceph"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Workers with meters that share a folder, then a bucket."""
    there = {"root": str(tmp_path / "store")}
    if request.param != "local":
        there = request.getfixturevalue(request.param).place()
    fleet = Fleet(there, tmp_path)
    yield fleet
    await fleet.close()


@pytest.fixture
async def endpoint(place: Place, tmp_path: Path) -> AsyncIterator[Endpoint]:
    """Workers under the SDK's loop at the double of RunPod's control plane, and their store."""
    async with ControlPlane() as plane:
        endpoint = Endpoint(plane, place, tmp_path)
        yield endpoint
        await endpoint.close()
        assert plane.violations == []


# ---- jobs and their inputs


@pytest.fixture
def input_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker and child know the kinds of `input_jobs.py`."""
    for name, job in input_jobs.KINDS.items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (input_jobs.__file__,))


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A private web server; each file there holds its own path."""
    with WebServer(lambda asked: Reply(body=asked.path.partition("?")[0].encode())) as server:
        yield server
