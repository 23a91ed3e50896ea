"""Files far larger than the memory a transfer may take."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Place


@pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)
def test_a_long_stream_goes_up_in_the_memory_of_three_parts(place: Place) -> None:
    stream = subprocess.run(
        [sys.executable, "-m", "tests.big_stream", json.dumps(place)],
        capture_output=True,
        text=True,
    )
    assert stream.returncode == 0, stream.stderr
    facts = json.loads(stream.stdout)
    assert set(facts["sizes"]) == {200 * 10**6}
    assert len(set(facts["digests"])) == 1
    # Three parts of 8 MiB, the buffers of their requests, and the modules of the first request.
    assert facts["extra_bytes"] < 60 * 10**6


@pytest.mark.big
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["local", "ceph"], indirect=True)
def test_two_gigabytes_go_up_and_down_in_little_memory(place: Place, tmp_path: Path) -> None:
    transfer = subprocess.run(
        [sys.executable, "-m", "tests.big_transfer", json.dumps(place), tmp_path],
        capture_output=True,
        text=True,
    )
    assert transfer.returncode == 0, transfer.stderr
    facts = json.loads(transfer.stdout)
    assert set(facts["sizes"]) == {2 * 10**9}
    assert len(set(facts["digests"])) == 1
    assert facts["extra_bytes"] < 150 * 10**6
