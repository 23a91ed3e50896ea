"""What it takes to deploy agrees with the code: images, the Hub's files, the workflow, `.env`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.actions import StartAction
from api.parsing import parse_action, parse_params
from scripts.env_example import example
from stores.probe import NO_CONDITIONS, NO_LINKS, NO_LINKS_TO_WRITE, NO_MULTI_DELETE
from tests import dockerfile
from tests.dockerfile import ROOT, files_of, let_through, tracked
from tests.landlock import needs_landlock
from tests.worker_process import FOREIGN
from worker.settings import Settings, load_settings, variables

STAGES = dockerfile.stages()
IMAGES = [STAGES["control"], STAGES["worker"]]
TRAINER = ROOT / "examples" / "trainer_image"
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
HUB_TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
GUIDE = (ROOT / "docs" / "deploy.md").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
#: Folders of Python that no worker runs.
NOT_SHIPPED = ("tests/", "scripts/", "bench/", "examples/", "client/")
#: What a package is called when it is imported, where that is another name.
MODULES = {"pillow": "PIL"}


def each_image(test: Any) -> Any:
    return pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)(test)


# ---- what gets into an image


def test_every_path_that_is_copied_is_there_and_known_to_git() -> None:
    sources = [source for stage in STAGES.values() for source in stage.copied()]
    assert [source for source in sources if not files_of(source)] == []


def test_every_module_of_the_worker_is_copied() -> None:
    modules = {name for name in tracked("**/*.py") if not name.startswith(NOT_SHIPPED)}
    copied = {name for source in STAGES["code"].copied() for name in files_of(source)}
    assert copied == modules


def test_a_build_is_given_what_is_copied_and_nothing_else() -> None:
    copied = {
        name for stage in STAGES.values() for source in stage.copied() for name in files_of(source)
    }
    assert {name for name in tracked("**") if let_through(name)} == copied


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".env.local",
        "inputs/.env",
        ".git/config",
        ".venv/pyvenv.cfg",
        "data/processes/p1",
        ".cache/ceph/apt.log",
        "jobs/__pycache__/sleep.cpython-312.pyc",
        "id_rsa",
        "key.pem",
    ],
)
def test_what_lies_around_never_reaches_a_build(path: str) -> None:
    assert not let_through(path)


def test_no_variable_of_a_build_holds_a_secret() -> None:
    for stage in STAGES.values():
        for rest in stage.all("ENV") + stage.all("ARG"):
            for name in re.findall(r"([A-Z_]+)=", rest):
                assert not re.search(r"KEY|SECRET|TOKEN|PASSWORD", name), name


# ---- how an image is made


def test_the_last_stage_is_the_one_with_the_gpu() -> None:
    """It is what RunPod builds from a repository: nobody names a stage there."""
    assert list(STAGES)[-1] == "worker"


def test_the_base_brings_the_torch_that_is_required() -> None:
    required = re.search(
        r"^torch==([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    assert required
    assert f"-torch{required[1].replace('.', '')}-" in dockerfile.arguments()["BASE_IMAGE"]


def test_pip_is_held_to_the_torch_of_the_base() -> None:
    install = STAGES["worker"].where("RUN", r"--constraint /tmp/base\.txt")
    assert "version('torch')" in STAGES["worker"].instructions[install].rest


@each_image
def test_a_change_of_the_code_installs_nothing(image: dockerfile.Stage) -> None:
    code = image.where("COPY", "--from=code")
    assert image.where("COPY", "requirements-worker.txt") < image.where("RUN", "pip install") < code
    after = [each for each in image.instructions[code + 1 :] if each.name in ("RUN", "COPY", "ADD")]
    assert [each.rest for each in after] == ["python -m compileall -q ."]


@each_image
def test_a_worker_is_not_root_unless_somebody_says_so(image: dockerfile.Stage) -> None:
    assert image.all("USER") == ["${RUN_AS}"]
    assert image.all("ARG") == ["RUN_AS=worker"]


@each_image
def test_a_worker_hears_signals_itself(image: dockerfile.Stage) -> None:
    """A shell in between would keep SIGTERM, and with it the drain, to itself."""
    assert json.loads(image.all("CMD")[0]) == ["python", "-u", "rp_handler.py"]
    assert image.all("STOPSIGNAL") == ["SIGTERM"]


@each_image
def test_health_is_what_the_doctor_says(image: dockerfile.Stage) -> None:
    (check,) = image.all("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command == ["python", "rp_handler.py", "doctor", "--quick"]


@each_image
def test_settings_of_an_image_are_settings(image: dockerfile.Stage) -> None:
    names = re.findall(r"(WORKER_[A-Z_]+)=", " ".join(image.all("ENV")))
    assert names
    assert set(names) <= set(variables())


# ---- the files of an image suffice


@pytest.fixture
def lay_out(tmp_path: Path) -> Any:
    """Copies what an image has of this repository into a folder of its own."""

    def lay_out(image: dockerfile.Stage) -> Path:
        for source in STAGES["code"].copied() | image.copied():
            for name in files_of(source):
                (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tmp_path / "app" / name)
        return tmp_path / "app"

    return lay_out


def ask(app: Path, request: dict[str, Any], *, before: str = "", **changes: str) -> str:
    """Run one request as the image would; what it said. `before` is run first."""
    start = f"{before}; import runpy; runpy.run_path('rp_handler.py', run_name='__main__')"
    program = ["-c", f"import sys; sys.path[0] = '.'; {start}"] if before else ["rp_handler.py"]
    ended = subprocess.run(
        [sys.executable, "-u", *program, "--test_input", json.dumps({"input": request})],
        cwd=app,
        capture_output=True,
        text=True,
        timeout=100,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(app),
            "RUNPOD_LOG_LEVEL": "INFO",
            "WORKER_SCRATCH_DIR": str(app / "scratch"),
        }
        | changes,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    return said


def test_a_process_runs_on_the_files_of_the_image(lay_out: Any) -> None:
    app = lay_out(STAGES["worker"])
    start = {"action": "start", "kind": "sleep", "process_id": "p", "params": {"artifacts": 1}}
    assert '"status": "completed"' in ask(app, start)
    assert (app / "data" / "processes" / "p").is_dir()


def test_a_worker_with_a_broken_kind_offers_the_others_and_logs_why(lay_out: Any) -> None:
    app = lay_out(STAGES["control"])
    (app / "jobs" / "stars.py").write_text("KIND = Job()")
    said = ask(app, {"action": "kinds"})
    assert "train_diffusion" in said
    assert "jobs/stars.py:1: NameError" in said


@pytest.mark.parametrize("image", ["worker", "control"])
def test_the_health_check_works_on_the_files_of_the_image(
    lay_out: Any, tmp_path: Path, image: str
) -> None:
    app = lay_out(STAGES[image])
    command = [sys.executable, "rp_handler.py", "doctor", "--quick"]
    environment = {"PATH": os.environ["PATH"], "WORKER_SCRATCH_DIR": str(tmp_path / "scratch")}
    ended = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "can take jobs" in ended.stdout


def test_the_role_control_needs_none_of_the_libraries_of_jobs(lay_out: Any) -> None:
    """They are not in its image: importing one fails here as it would there."""
    names = re.findall(r"^([a-z]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    modules = [MODULES.get(name, name) for name in names]
    assert {"torch", "numpy", "PIL"} <= set(modules)
    block = f"sys.modules.update(dict.fromkeys({modules}))"
    app = lay_out(STAGES["control"])
    assert "train_diffusion" in ask(app, {"action": "kinds"}, before=block, WORKER_ROLE="control")
    assert '"role": "control"' in ask(
        app, {"action": "health"}, before=block, WORKER_ROLE="control"
    )


def test_the_control_image_installs_what_requirements_txt_begins_with() -> None:
    install = STAGES["control"].where("RUN", "pip install")
    assert "--requirement requirements-worker.txt" in STAGES["control"].instructions[install].rest
    assert "\n-r requirements-worker.txt\n" in (ROOT / "requirements.txt").read_text()


# ---- `make`


def test_an_install_is_redone_when_any_of_its_requirements_changes() -> None:
    makefile = (ROOT / "Makefile").read_text()
    stamp = re.search(r"^\$\(VENV\)/\.runtime: (.*)$", makefile, re.MULTILINE)
    assert stamp
    included = re.findall(r"^-r (\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert {"requirements.txt", *included} <= set(stamp[1].split())


@pytest.mark.parametrize(
    ("nvidia", "index", "noted", "asked"),
    [
        ("", "", True, False),
        ("", "https://cpu", False, True),
        ("driver", "https://cpu", False, False),
    ],
)
def test_make_install_takes_the_cpu_build_of_torch_where_there_is_no_driver(
    tmp_path: Path, nvidia: str, index: str, noted: bool, asked: bool
) -> None:
    places = [f"VENV={tmp_path}", f"NVIDIA={nvidia}", f"TORCH_INDEX_URL={index}"]
    told = subprocess.run(
        ["make", "-n", "install", *places], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert ("Gigabytes may be downloaded" in told) == noted
    assert ("--extra-index-url https://cpu" in told) == asked
    assert "--quiet" not in told


def test_make_check_lints_the_dockerfile() -> None:
    check = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    assert "hadolint Dockerfile" in check


# ---- .env.example


def test_env_example_is_what_the_script_prints() -> None:
    written = (ROOT / ".env.example").read_text().rstrip("\n")
    assert written == example(), "run: python scripts/env_example.py > .env.example"


def test_env_example_shows_the_defaults_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", example(), re.MULTILINE))
    assert set(shown) <= set(variables())
    assert len(shown) == len(Settings.model_fields)
    assert shown["BUCKET_SECRET_ACCESS_KEY"] == shown["BUCKET_SESSION_TOKEN"] == ""
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    defaults = load_settings()
    for name, value in shown.items():
        monkeypatch.setenv(name, value)
    assert load_settings().model_dump(exclude={"worker_id"}) == defaults.model_dump(
        exclude={"worker_id"}
    )


# ---- the Hub, by its publishing guide


def test_the_hub_is_told_what_it_requires() -> None:
    assert {"title", "description", "type", "category", "config"} <= set(HUB)
    assert HUB["type"] == "serverless"
    assert HUB["category"] in {"audio", "embedding", "language", "video", "image"}
    assert {"runsOn", "containerDiskInGb", "gpuCount", "gpuIds"} <= set(HUB["config"])


@pytest.mark.parametrize("entry", HUB["config"]["env"], ids=lambda entry: entry["key"])
def test_what_the_hub_asks_for_is_a_setting(
    entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = entry["input"]
    assert entry["key"] in variables()
    assert {"name", "type", "description", "default"} <= set(asked)
    for value in [asked["default"], *(option["value"] for option in asked.get("options", []))]:
        monkeypatch.setenv(entry["key"], str(value))
        load_settings()


def test_a_preset_of_the_hub_sets_what_the_hub_asks_for() -> None:
    asked = {entry["key"] for entry in HUB["config"]["env"]}
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= asked


@pytest.mark.parametrize("case", HUB_TESTS["tests"], ids=lambda case: case["name"])
def test_what_the_hub_tries_is_understood(case: dict[str, Any]) -> None:
    assert case["timeout"] >= 10_000, "milliseconds"
    action = parse_action(case["input"])
    if isinstance(action, StartAction):
        params = parse_params(action.kind, action.params)
        if dataset := params.get("dataset"):
            assert files_of(str(dataset))
            assert any(str(dataset).startswith(each) for each in STAGES["worker"].copied())


def test_the_hub_tries_it_where_users_run_it() -> None:
    assert {each["key"] for each in HUB_TESTS["config"]["env"]} <= set(variables())
    assert HUB_TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]


def test_no_machine_is_offered_whose_driver_is_older_than_the_base() -> None:
    digits = re.search(r"-cu(\d+)(\d)\d-", dockerfile.arguments()["BASE_IMAGE"])
    assert digits
    oldest = (int(digits[1]), int(digits[2]))
    for version in HUB["config"]["allowedCudaVersions"]:
        assert tuple(map(int, version.split("."))) >= oldest


# ---- docs/deploy.md


def test_the_endpoint_of_the_docs_never_ends_a_training_after_five_minutes() -> None:
    deploy = (ROOT / "docs" / "deploy.md").read_text()
    body = json.loads(deploy.split("```json\n")[1].split("```")[0])
    assert body["timeout"] >= 24 * 3600 * 1000
    assert set(body["env"]) <= set(variables())
    assert body["gpu"]["pools"] == HUB["config"]["gpuIds"].split(",")
    assert body["gpu"]["minCudaVersion"] == HUB["config"]["allowedCudaVersions"][-1]
    assert body["disk"] == HUB["config"]["containerDiskInGb"]


@needs_landlock
def test_the_trainer_of_the_docs_runs_as_they_say(tmp_path: Path) -> None:
    """All that their image does without Docker; the packages of this environment stand for pip."""
    here = tmp_path / "trainer"
    here.mkdir()
    for line in (TRAINER / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            shutil.copy(TRAINER / line[1:], here)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here / "venv"], check=True)
    [packages] = (here / "venv").glob("lib/*/site-packages")
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib"))
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    own |= {
        "WORKER_PROGRAMS": str(here / "programs.toml"),
        "WORKER_DATA_DIR": str(tmp_path / "data"),
        "WORKER_SCRATCH_DIR": str(tmp_path / "scratch"),
    }
    start = (ROOT / "docs" / "deploy.md").read_text().split("--test_input '")[1].split("'")[0]
    for arguments in (["doctor", "--quick"], ["--test_input", start]):
        ended = subprocess.run(
            [sys.executable, ROOT / "rp_handler.py", *arguments],
            cwd=tmp_path,
            env=own,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [file["path"] for file in json.loads(ended.stdout)["files"]] == ["model.json"]


def test_the_image_of_the_trainer_is_given_what_it_copies() -> None:
    copied = re.findall(r"^COPY (.+) \./$", (TRAINER / "Dockerfile").read_text(), re.MULTILINE)
    given = (TRAINER / ".dockerignore").read_text()
    assert re.findall(r"^!(.+)$", given, re.MULTILINE) == " ".join(copied).split()


# ---- the workflow


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = WORKFLOW["jobs"][job]["steps"]
    return found


def test_the_workflow_runs_what_ci_runs_and_builds_both_images() -> None:
    commands = {
        job: "\n".join(step.get("run", "") for step in steps(job)) for job in WORKFLOW["jobs"]
    }
    assert ".ci/run" in commands["check"]
    assert "python:3.11" in WORKFLOW["jobs"]["check"]["container"]
    for image in IMAGES:
        assert f"--target {image.name} " in commands[f"{image.name}-image"]
    assert "docker push" not in "".join(commands.values())


def test_the_workflow_may_only_read_and_names_versions_of_what_it_uses() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for job in WORKFLOW["jobs"]:
        for step in steps(job):
            assert re.search(r"@(v\d+|[0-9a-f]{40})$", step.get("uses", "@v0")), step


# ---- docs/deploy.md


def test_links_of_the_guide_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-").lower()
        for heading in re.findall(r"^#+ (.*)$", GUIDE, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]+)\)", GUIDE):
        path, _, anchor = link.partition("#")
        assert (ROOT / "docs" / path).exists(), link
        assert not anchor or anchor in headings, link


def test_requests_of_the_guide_are_understood() -> None:
    bodies = [json.loads(body) for body in re.findall(r"-d '(\{.*?\})'", GUIDE, re.DOTALL)]
    assert len(bodies) == 3
    for body in bodies:
        action = parse_action(body["input"])
        if isinstance(action, StartAction):
            parse_params(action.kind, action.params)
            assert set(body["policy"]) == {"executionTimeout", "ttl"}


@pytest.mark.parametrize("sentence", [NO_CONDITIONS, NO_LINKS, NO_LINKS_TO_WRITE, NO_MULTI_DELETE])
def test_the_guide_explains_every_way_in_which_a_store_is_degraded(sentence: str) -> None:
    explained = re.findall(r"^\| `degraded`: (.*?) \|", GUIDE, re.MULTILINE)
    assert [begin for begin in explained if sentence.startswith(begin)]


def test_variables_that_the_guide_names_are_settings() -> None:
    assert set(re.findall(r"\b(?:WORKER|S3|BUCKET)_[A-Z_]+\b", GUIDE)) <= set(variables())
