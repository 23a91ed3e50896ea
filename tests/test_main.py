"""The program itself: started as a person would start it."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stores.s3.store import S3Store
from tests.kit import Caller
from tests.patience import PATIENCE
from tests.worker_process import FOREIGN, eventually

ROOT = Path(__file__).parent.parent
SLEEP = {"input": {"action": "start", "kind": "sleep", "process_id": "p"}}


@pytest.fixture
def environment(tmp_path):
    """A machine of its own: no bucket, a folder for everything."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    return own | {
        "WORKER_DATA_DIR": str(tmp_path / "data"),
        "WORKER_SCRATCH_DIR": str(tmp_path / "scratch"),
    }


@pytest.fixture
def run(environment, tmp_path):
    """`python rp_handler.py ARGUMENTS` in an empty folder, to its end."""

    def run(*arguments, **changes):
        command = [sys.executable, ROOT / "rp_handler.py", *arguments]
        return subprocess.run(
            command, env=environment | changes, cwd=tmp_path, capture_output=True, text=True
        )

    return run


def test_help_says_how_it_is_used(run):
    ended = run("--help")
    assert ended.returncode == 0
    assert "--test_input" in ended.stdout


def test_without_arguments_it_runs_test_input_json(run, tmp_path):
    (tmp_path / "test_input.json").write_text(json.dumps(SLEEP))
    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert "sleep completed" in ended.stderr


def test_test_input_runs_one_request_and_says_where_the_files_are(run, tmp_path):
    job = {"input": SLEEP["input"] | {"params": {"artifacts": 1}}}
    ended = run("--test_input", json.dumps(job))
    assert ended.returncode == 0, ended.stderr
    path = next(line.strip() for line in ended.stderr.splitlines() if "artifact-1.bin" in line)
    assert Path(path).is_relative_to(tmp_path / "data")
    assert Path(path).is_file()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"action": "kinds"}, 0),
        ({"action": "nonsense"}, 1),
        ({"action": "start", "kind": "sleep"}, 0),
        ({"action": "start", "kind": "sleep", "params": {"fail_at": 1}}, 1),
    ],
)
def test_the_reply_alone_is_on_standard_output_as_json(run, request_, code):
    ended = run("--test_input", json.dumps({"input": request_}))
    assert ended.returncode == code
    assert ("error" in json.loads(ended.stdout)) == bool(code)


def test_at_a_terminal_the_reply_is_indented(environment, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, ROOT / "rp_handler.py", "--test_input", '{"input": {}}']
    ended = subprocess.run(command, env=environment, cwd=tmp_path, stdout=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ended.returncode == 1
    assert shown.startswith('{\r\n  "error": ')
    assert json.loads(shown)


def test_without_a_job_it_says_what_to_give(run):
    ended = run()
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("test_input.json: No such file")


def test_the_sdk_is_imported_without_a_second_for_the_processors_name():
    code = "import sys, rp_handler; rp_handler.import_sdk(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "runpod" in loaded.stdout.split()
    assert "cpuinfo.cpuinfo" not in loaded.stdout.split()


@pytest.mark.parametrize("text", ["{", "[]", '"start"', "{}", '{"input": null}'])
def test_a_test_input_that_is_no_job_gets_a_sentence_and_no_traceback(run, text):
    ended = run("--test_input", text)
    assert ended.returncode == 2
    assert "takes a JSON object" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("option", ["--test-input", "--rp_serve", "--rp_port=1", "start"])
def test_an_option_that_there_is_not_runs_nothing(run, tmp_path, option):
    """Least of all the training that `test_input.json` describes."""
    (tmp_path / "test_input.json").write_text(json.dumps(SLEEP))
    ended = run(option)
    assert ended.returncode == 2
    assert option in ended.stderr
    assert not (tmp_path / "data").exists()


def test_a_setting_that_cannot_be_stops_it_with_a_sentence_that_names_the_variable(run):
    ended = run("--test_input", json.dumps(SLEEP), WORKER_SLOTS="many")
    assert ended.returncode == 1
    assert "WORKER_SLOTS" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"S3_BUCKET": "b", "BUCKET_ACCESS_KEY_ID": "a"}, "set both or none"),
        ({"S3_BUCKET": "b", "S3_PREFIX": "../x"}, "S3_PREFIX"),
    ],
)
def test_a_bucket_that_cannot_be_meant_stops_it_with_a_sentence(run, changes, says):
    ended = run("--test_input", json.dumps(SLEEP), **changes)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_store_that_cannot_be_reached_is_said_at_start_and_in_health(tmp_path, caplog):
    store = S3Store(
        bucket="b",
        endpoint_url="http://127.0.0.1:9",
        region="us-east-1",
        access_key_id="a",
        secret_access_key="b",
        retry_seconds=0.1,
    )
    call = Caller(store, tmp_path)
    health = await call("health")
    assert health["status"] == "broken"
    assert "S3_ENDPOINT_URL is wrong" in health["store"]["message"]
    while "does not work" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody
        await asyncio.sleep(0.02)
    assert "S3_ENDPOINT_URL is wrong" in caplog.text
    await store.close()


async def test_ctrl_c_stops_the_child_keeps_its_checkpoint_and_says_how_to_go_on(
    environment, tmp_path
):
    params = {"seconds": 15, "steps": 150, "checkpoint_every": 1}
    job = {"input": SLEEP["input"] | {"params": params}}
    command = [sys.executable, ROOT / "rp_handler.py", "--test_input", json.dumps(job)]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as worker:
        record = tmp_path / "data/processes/p/record.json"
        await eventually(lambda: record.exists() and '"seq":' in record.read_text(), "a checkpoint")
        worker.send_signal(signal.SIGINT)
        _, said = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 128 + signal.SIGINT
    kept = json.loads(record.read_text())
    assert kept["status"] == "interrupted"
    assert kept["checkpoints"]
    pasted = said.decode().rpartition("To resume it:\n")[2]
    resumed = subprocess.run(
        ["sh", "-c", pasted], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    view = json.loads(resumed.stdout)
    assert (view["status"], view["attempt"]) == ("completed", 2)
    assert view["result"]["resumed_from"] >= 1


# ---- by hand


def test_clean_tells_what_would_go_and_then_removes_it(run, tmp_path):
    """By hand as in the background, and from a dry run nothing is gone."""
    (tmp_path / "data/locks").mkdir(parents=True)
    left = tmp_path / "data/locks/check-1"
    left.write_bytes(b"12345")
    os.utime(left, (0, 0))
    for arguments, says, there in (
        (["--dry-run"], "would be removed", True),
        ([], "removed", False),
        ([], "nothing removed", False),
    ):
        ended = run("clean", *arguments)
        assert ended.returncode == 0, ended.stderr
        assert says in ended.stdout
        assert left.exists() == there
    assert not (tmp_path / "data/processes").exists()  # no job was run
