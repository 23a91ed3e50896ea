"""What the environment may say, and what is said of it when it is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker import settings, volume
from worker.settings import Settings, load_settings, unknown_variables, variables
from worker.volume import Mount

ROOT = Path(__file__).parent.parent


#: What no look at the value alone can find wrong.
ANY_TEXT = {
    "region",
    "tls_bundle",
    "data_dir",
    "scratch_dir",
    "worker_id",
    "prepare_dir",
    "programs",
}


@pytest.mark.parametrize("name", variables())
def test_a_setting_that_is_wrong_stops_the_worker_with_a_sentence_that_names_it(name, monkeypatch):
    """Every one of them, with a value that no type takes but a text."""
    monkeypatch.setenv(name, "\x1f not this /../")
    field = next(f for f in Settings.model_fields if name in settings.names_of(f))
    if field in ANY_TEXT:
        load_settings()
        return
    with pytest.raises(SystemExit) as stopped:
        load_settings()
    assert str(stopped.value.code).startswith(f"{name}: ")
    assert "\n" not in stopped.value.code


R2 = "https://account.r2.cloudflarestorage.com"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"S3_BUCKET": "s3://b"}, "S3_BUCKET: .*set S3_BUCKET=b$"),
        ({"S3_BUCKET": "s3://b/a/c/"}, "S3_BUCKET: .*set S3_BUCKET=b and S3_PREFIX=a/c$"),
        ({"S3_BUCKET": "b/"}, "S3_BUCKET: .*set S3_BUCKET=b$"),
        ({"BUCKET_NAME": "b/prefix"}, "BUCKET_NAME: .*S3_PREFIX=prefix$"),
        ({"S3_BUCKET": f"{R2}/b"}, "S3_BUCKET: .*goes into S3_ENDPOINT_URL$"),
        (
            {"S3_BUCKET": "b", "S3_ENDPOINT_URL": f"{R2}/b"},
            f"set S3_ENDPOINT_URL={R2} and S3_BUCKET=b$",
        ),
        (
            {"S3_BUCKET": "b", "S3_ENDPOINT_URL": "https://x.test/storage/s3/b/"},
            "set S3_ENDPOINT_URL=https://x.test/storage/s3 and S3_BUCKET=b$",
        ),
        (
            {"S3_BUCKET": "b", "S3_ENDPOINT_URL": "https://b.s3.amazonaws.com"},
            "set S3_ENDPOINT_URL=https://s3.amazonaws.com and S3_BUCKET=b$",
        ),
        ({"S3_ENDPOINT_URL": f"{R2}/b"}, "no bucket: set S3_BUCKET"),
        ({"BUCKET_ACCESS_KEY_ID": "AK IA"}, "BUCKET_ACCESS_KEY_ID: holds a space"),
        ({"BUCKET_SECRET_ACCESS_KEY": "se\ncret"}, "BUCKET_SECRET_ACCESS_KEY: holds a space"),
    ],
)
def test_a_bucket_that_is_pasted_in_another_form_is_recognised(given, sentence, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=sentence) as stopped:
        load_settings()
    assert "cret" not in str(stopped.value.code)


def test_white_space_around_pasted_values_does_no_harm(monkeypatch):
    for name, value in {
        "S3_BUCKET": " b\n",
        "S3_ENDPOINT_URL": f"{R2}\n",
        "BUCKET_ACCESS_KEY_ID": "AKIA\n",
        "BUCKET_SECRET_ACCESS_KEY": "\tsecret ",
    }.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    assert (found.bucket, found.endpoint_url, found.access_key_id) == ("b", R2, "AKIA")
    assert found.secret_access_key.get_secret_value() == "secret"


def test_an_address_with_a_path_of_its_own_is_taken(monkeypatch):
    monkeypatch.setenv("S3_BUCKET", "b")
    monkeypatch.setenv("S3_ENDPOINT_URL", "https://project.test/storage/v1/s3")
    assert load_settings().endpoint_url == "https://project.test/storage/v1/s3"


def test_the_lease_must_outlast_the_heartbeat(monkeypatch):
    monkeypatch.setenv("WORKER_LEASE_SECONDS", "5")
    with pytest.raises(SystemExit, match="WORKER_LEASE_SECONDS must be at least twice"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("WORKER_SLOT", "WORKER_SLOTS"),
        ("worker_rolle", "WORKER_ROLE"),
        ("WORKER_PROCESSDAYS", "WORKER_PROCESS_DAYS"),
    ],
)
def test_a_misspelt_variable_is_warned_about_with_the_nearest_name(name, nearest):
    [sentence] = unknown_variables({name: "1", "HOME": "/root"})
    assert name in sentence
    assert nearest in sentence


def test_a_variable_that_is_near_to_none_is_warned_about_too():
    [sentence] = unknown_variables(["WORKER_ZZZZZZ"])
    assert "did you mean" not in sentence


def test_known_variables_are_not_warned_about():
    assert unknown_variables(variables()) == []


def test_the_worker_warns_when_it_starts(tmp_path):
    job = json.dumps({"input": {"action": "kinds"}})
    environment = os.environ | {"WORKER_SLOTZ": "2", "WORKER_DATA_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, ROOT / "rp_handler.py", "--test_input", job],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    [line] = [json.loads(line) for line in ended.stderr.splitlines() if "WORKER_SLOTZ" in line]
    assert line["level"] == "WARNING"
    assert "WORKER_SLOTS" in line["message"]


def test_what_kinds_prepare_lies_on_the_volume_if_there_is_one(tmp_path, monkeypatch):
    mine = Settings(scratch_dir=tmp_path / "scratch")
    assert mine.prepared_root() == tmp_path / "scratch" / "prepared"
    monkeypatch.setattr(volume, "PATH", Path("/proc"))  # one that is mounted
    assert mine.prepared_root() == Path("/proc/prepared")


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """A folder that is taken for the mount at `/runpod-volume`."""
    mount = tmp_path / "volume"
    mount.mkdir()
    monkeypatch.setattr(volume, "PATH", mount)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == mount)
    return mount


@pytest.mark.parametrize("content", [[], ["worker-data"], ["huggingface-cache", "prepared"]])
def test_a_network_volume_is_the_store_where_there_is_no_bucket(mount, content):
    for name in content:
        (mount / name).mkdir()
    assert Settings().local_store_root() == mount / "worker-data"


def test_a_mount_of_cached_models_alone_is_no_volume(mount):
    """Records in it would belong to one host's cache."""
    (mount / "huggingface-cache").mkdir()
    assert Settings().local_store_root() == Path("data").absolute()
    assert mount not in Settings().prepared_root().parents


@pytest.mark.parametrize("call", ["access", "listdir"])
def test_a_mount_that_cannot_be_written_or_listed_is_no_store(mount, monkeypatch, call):
    def denied(*_):
        if call == "listdir":
            raise PermissionError
        return False

    monkeypatch.setattr(volume.os, call, denied)
    assert Settings().local_store_root() == Path("data").absolute()
    assert volume.mounted() is Mount.NOT_WRITABLE
