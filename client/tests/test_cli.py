"""The command line where no endpoint is needed: help, arguments, the profile, errors."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from podjobs import retrying
from podjobs.cli.app import app, run_command
from podjobs.cli.display import sparkline
from podjobs.cli.following import exit_code
from podjobs.cli.schema import param_rows
from podjobs.models import View
from podjobs.policy import policy_of
from podjobs.profile import load_profile, profile_path, save_profile
from podjobs.retrying import delay_after

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "APPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("RUNPOD_API_KEY", "PODJOBS_ENDPOINT", "PODJOBS_CONTROL"):
        monkeypatch.delenv(name, raising=False)


def commands() -> list[str]:
    return [name for name in app if not name.startswith("-")]


@pytest.mark.parametrize("command", commands())
def test_the_help_of_every_command_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command([command, "--help"])
    assert f"Example: podjobs {command}" in capsys.readouterr().out


def test_a_mistyped_command_is_an_error_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["statsu"]) == 2
    assert '"status"' in "".join(capsys.readouterr())


def test_without_an_endpoint_the_error_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ps"]) == 1
    assert "podjobs login" in capsys.readouterr().err


def test_login_saves_a_profile_that_only_its_owner_can_read() -> None:
    assert run_command(["login", "--key", "k", "--endpoint", "e", "--control", "c"]) == 0
    assert load_profile() == ("e", "c", "k")
    if os.name != "nt":
        assert stat.S_IMODE(profile_path().stat().st_mode) == 0o600


def test_login_replaces_a_damaged_profile(capsys: pytest.CaptureFixture[str]) -> None:
    profile_path().parent.mkdir(parents=True)
    profile_path().write_text("{half")
    assert run_command(["ps", "--endpoint", "e"]) == 1
    assert "podjobs login" in capsys.readouterr().err
    assert run_command(["login", "--key", "k", "--endpoint", "e"]) == 0
    assert load_profile() == ("e", None, "k")


@pytest.mark.parametrize(
    ("status", "code", "exits"),
    [
        ("completed", "", 0),
        ("failed", "job_error", 1),
        ("cancelled", "", 3),
        ("cancelled", "stopped_by_platform", 4),
        ("interrupted", "", 4),
    ],
)
def test_the_exit_code_says_how_the_process_ended(status: str, code: str, exits: int) -> None:
    failure = {"code": code, "message": ""} if code else None
    view = View.model_validate({"process_id": "p", "status": status, "failure": failure})
    assert exit_code(view) == exits


def test_an_argument_wins_over_the_environment_and_that_over_the_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_profile(key="saved", endpoint="saved")
    monkeypatch.setenv("PODJOBS_ENDPOINT", "from-environment")
    monkeypatch.setenv("RUNPOD_API_KEY", "from-environment")
    assert load_profile() == ("from-environment", None, "from-environment")
    assert load_profile(endpoint="argument", key="argument") == ("argument", None, "argument")


def test_the_control_endpoint_of_the_profile_belongs_to_its_endpoint() -> None:
    save_profile(key="k", endpoint="e", control="c")
    assert load_profile(endpoint="other").control is None


def test_limits_and_defaults_of_params_are_shown() -> None:
    schema = {
        "required": ["dataset"],
        "properties": {
            "dataset": {"type": "string", "description": "Which input."},
            "steps": {"type": "integer", "minimum": 1, "default": 1000},
            "seed": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        },
    }
    assert param_rows(schema) == [
        ("dataset", "string", "required", "", "Which input."),
        ("steps", "integer", "1000", "≥ 1", ""),
        ("seed", "integer", "null", "", ""),
    ]


def test_a_policy_is_in_milliseconds_and_never_above_the_platform_s_limit() -> None:
    week = 7 * 86_400_000
    assert policy_of(60) == {"executionTimeout": 1_860_000, "ttl": 88_260_000}
    assert policy_of(7 * 86_400) == {"executionTimeout": week, "ttl": week}


def test_the_server_s_retry_after_is_honoured_by_its_own_clock() -> None:
    dates = {"Date": "Tue, 01 Dec 2026 10:00:00 GMT"}
    later = {"Retry-After": "Tue, 01 Dec 2026 10:00:20 GMT"}
    assert delay_after(0, httpx.Response(429, headers={"Retry-After": "7"})) == 7
    assert delay_after(0, httpx.Response(503, headers={**dates, **later})) == 20
    assert 0 < delay_after(3) <= 4


def test_a_sparkline_goes_from_low_to_high() -> None:
    assert sparkline([0, 1, 7]) == "▁▂█"
    assert sparkline([3, 3]) == "▁▁"


def test_an_error_leaves_standard_output_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrying, "TRIES", 1)
    assert run_command(["kinds", "--endpoint", "http://127.0.0.1:9", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "endpoint_unreachable" in printed.err


def test_importing_the_package_loads_no_heavy_module() -> None:
    code = "import sys, podjobs; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"boto3", "runpod", "torch", "cyclopts"})
