"""Ceph RGW for a section: one of its own, or the one that a quick run's sections share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import Keys, S3Server, run_ceph

_SHARED = "BENCH_CEPH"


@contextmanager
def section_ceph() -> Iterator[S3Server]:
    """Its bucket may hold what others put there: use a `place` in it, or keys of your own."""
    if told := os.environ.get(_SHARED):
        fields = json.loads(told)
        keys, other = (Keys(*fields[name]) for name in ("keys", "other"))
        certificate = Path(fields["certificate"])
        yield S3Server(**fields | {"keys": keys, "other": other, "certificate": certificate})
    else:
        with run_ceph() as server:
            yield server


@contextmanager
def shared_ceph() -> Iterator[dict[str, str]]:
    """What to put into a section's environment, so that it need not start one."""
    with run_ceph() as server:
        yield {_SHARED: json.dumps(server._asdict(), default=str)}
