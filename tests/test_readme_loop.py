"""The README's own code, run as it stands there against a worker that serves on this machine."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PATH = "artifact-1.bin"


@pytest.fixture
def endpoint(tmp_path):
    """The worker as `python rp_handler.py --rp_serve_api` serves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "rp_handler.py", "--rp_serve_api", "--rp_api_port", str(port)],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "WORKER_DATA_DIR": str(tmp_path / "data"),
            "WORKER_SCRATCH_DIR": str(tmp_path / "scratch"),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_answers(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _wait_until_it_answers(server, port):
    while True:
        assert server.poll() is None, "the worker has ended"
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return


def test_the_loop_that_fetches_a_large_file_in_stretches(endpoint, tmp_path, monkeypatch):
    [code] = [
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "download_file" in block
    ]
    monkeypatch.chdir(tmp_path)
    known = {"ENDPOINT": endpoint, "KEY": "key"}
    call, loop = code.replace("model.safetensors", PATH).split("offset, digest")
    exec(call, known)  # noqa: S102 - the README's
    known["call"](
        action="start",
        kind="sleep",
        process_id="p1",
        params={"artifacts": 1, "artifact_bytes": (4 << 20) * 2 + 5},
    )
    exec(f"offset, digest{loop}", known)  # noqa: S102
    data = (tmp_path / PATH).read_bytes()
    assert len(data) == (4 << 20) * 2 + 5
    assert hashlib.sha256(data).hexdigest() == known["part"]["file_sha256"]


def test_the_whole_way_with_curl(endpoint, tmp_path):
    [script] = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    changes = {
        "localhost:8000": endpoint.removeprefix("http://"),
        ".venv/bin/python": sys.executable,
        '"steps": 300': '"steps": 2, "batch_size": 4, "channels": 8, "sample_every": 2',
        '"count": 64': '"count": 3, "steps": 2',
    }
    for written, here in changes.items():
        assert script.count(written) == 1
        script = script.replace(written, here)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert '"error"' not in ended.stdout, ended.stdout
    rows = json.loads((tmp_path / "seeds.json").read_text())["images"]
    assert len(rows) == 3
    data = (tmp_path / "00000.png").read_bytes()
    assert hashlib.sha256(data).hexdigest() == rows[0]["sha256"]
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 600
