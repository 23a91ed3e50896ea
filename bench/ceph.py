"""Ceph RGW for a section: one of its own, or the one that a quick run's sections share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import S3Server, run_ceph

_shared: list[S3Server] = []


@contextmanager
def section_ceph() -> Iterator[S3Server]:
    """Its bucket may hold what others put there: use a `place` in it, or keys of your own."""
    if _shared:
        yield _shared[0]
    else:
        with run_ceph() as server:
            yield server


@contextmanager
def shared_ceph() -> Iterator[None]:
    """For all sections that begin within."""
    with run_ceph() as server:
        _shared.append(server)
        try:
            yield
        finally:
            _shared.clear()
