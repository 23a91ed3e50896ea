"""`python -m jobs` for people: a new kind is whole as written, and a kind runs as a program."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.parsing import UnknownKind, parse_params
from jobs import JOBS as KINDS
from jobs.cli.local_run import last_checkpoint
from jobs.cli.new import EXAMPLE, MAX_NAME
from tests.landlock import needs_landlock

ROOT = Path(__file__).resolve().parent.parent
JOBS = (sys.executable, "-m", "jobs")


def jobs(
    folder: Path, *arguments: str, tree: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m jobs ...`, started in `folder`, to its end."""
    return subprocess.run(
        [*JOBS, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tree)} | environment,
    )


# ---- new


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a kind is written into."""
    tree = tmp_path / "tree"
    for name in ("jobs", "programs", "child"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("examples", "tests"):
        (tree / name).mkdir()
    for name in (
        "utils.py",
        "pyproject.toml",
        f"examples/{EXAMPLE}.py",
        f"tests/test_{EXAMPLE}.py",
    ):
        shutil.copy(ROOT / name, tree / name)
    return tree


def files_of(tree: Path) -> dict[str, bytes]:
    paths = list(tree.rglob("*.py"))
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.timeout(600)
def test_new_kinds_pass_all_checks_and_their_own_tests_as_they_are_written(tree: Path) -> None:
    # imports are sorted, so the name matters: the first, the last, and the longest
    names = ["a", "zoo2", "long_" + "x" * (MAX_NAME - 5)]
    for name in names:
        ended = jobs(tree, "new", name, tree=tree)
        assert ended.returncode == 0, ended.stderr
    tests = [f"tests/test_{name}.py" for name in names]
    modules = [f"jobs/{name}.py" for name in names]
    for check in (
        ["ruff", "check", "jobs", "tests"],
        ["ruff", "format", "--check", "jobs", "tests"],
        ["mypy", "--cache-dir", str(tree / "cache"), *modules, *tests],
        # Its own temporary files: runs that share a folder for them tidy it for each other.
        ["pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tree / "temporary"), "tests"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", *check], cwd=tree, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{check[0]}: {ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    assert "32 passed" in ended.stdout


def test_new_says_what_it_wrote_and_how_to_go_on(tree: Path) -> None:
    said = jobs(tree, "new", "count_stars", tree=tree).stdout
    assert "new: jobs/count_stars.py" in said
    assert "new: tests/test_count_stars.py" in said
    assert "python -m jobs run count_stars" in said


def test_a_new_kind_runs_and_is_listed(tree: Path) -> None:
    jobs(tree, "new", "count_stars", tree=tree)
    assert "The kind `count_stars`: approximate pi" in jobs(tree, "list", tree=tree).stdout
    ended = jobs(tree, "run", "count_stars", "--folder", "here", tree=tree)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["pi"] == pytest.approx(3.14159, abs=1e-5)
    table = tree / "here" / "attempt-1" / "outputs" / "pi.csv"
    assert len(table.read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sleep", "already"),
        ("archive", "already"),
        ("template", "exists already"),
        ("diffusion", "exists already"),
        ("house", "exists already"),
        ("Stars", "small letters"),
        ("1st", "small letters"),
        ("count-stars", "small letters"),
        ("../stars", "small letters"),
        ("_x", "small letters"),
        ("class", "word of Python"),
        ("x" * (MAX_NAME + 1), "at most"),
        ("", "small letters"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_changed(
    tree: Path, name: str, why: str
) -> None:
    (tree / "tests" / "test_house.py").touch()
    before = files_of(tree)
    ended = jobs(tree, "new", name, tree=tree)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert why in ended.stderr
    assert files_of(tree) == before


# ---- kinds are found


def declare(tree: Path, name: str, source: str) -> str:
    """Write a module of an author; what `python -m jobs list` says of it."""
    (tree / "jobs" / f"{name}.py").write_text(source)
    listed = jobs(tree, "list", tree=tree)
    assert listed.returncode == 1
    assert "The smallest kind" in listed.stdout  # the others are there
    return listed.stderr


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("KIND = Job()", "stars.py:1: NameError: name 'Job' is not defined"),
        ("import sys\n\nKIND = sys.exit('no')", "stars.py:3: SystemExit: no"),
        ("KIND = (", "stars.py:1: SyntaxError: "),
        ("KIND = {'run': print}", "TypeError: KIND is no Job"),
        ("KIND: int", "AttributeError: "),
    ],
)
def test_a_broken_module_costs_only_its_own_kind(tree: Path, source: str, why: str) -> None:
    assert why in declare(tree, "stars", source)
    ended = jobs(tree, "run", "stars", tree=tree)
    assert ended.returncode == 2
    assert why in ended.stderr


def test_of_two_modules_with_one_name_the_second_is_refused(tree: Path) -> None:
    copied = (tree / "jobs" / "sleep.py").read_text()
    (tree / "jobs" / "diffusion" / "sleep.py").write_text(copied)
    listed = jobs(tree, "list", tree=tree)
    assert "jobs/sleep.py:1: ImportError: another module has this name" in listed.stderr
    assert "The smallest kind" in listed.stdout


def test_the_kind_in_the_readme_runs_as_it_is(tree: Path) -> None:
    section = (ROOT / "README.md").read_text().split("**To add one**")[1]
    source = section.split("```python\n")[1].split("```")[0]
    (tree / "jobs" / "count_words.py").write_text(source)
    assert "Count the words of a text." in jobs(tree, "list", tree=tree).stdout
    ended = jobs(tree, "run", "count_words", "--params", '{"text": "one two"}', tree=tree)
    assert json.loads(ended.stdout) == {"words": 2}


def test_a_module_without_a_kind_is_not_imported(tree: Path) -> None:
    (tree / "jobs" / "helper.py").write_text("raise SystemExit\n")
    assert jobs(tree, "list", tree=tree).returncode == 0


def test_a_start_of_a_broken_kind_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS.broken, "stars", "jobs/stars.py:1: NameError: name 'TELL-NOBODY'")
    with pytest.raises(UnknownKind, match="`stars` is broken on this worker") as refused:
        parse_params("stars", {})
    assert "TELL-NOBODY" not in str(refused.value)


# ---- run


def test_run_leaves_the_outputs_where_it_says_and_tells_the_result(tmp_path: Path) -> None:
    params = '{"steps": 3, "artifacts": 2}'
    ended = jobs(tmp_path, "run", "sleep", "--params", params)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"steps_run_by_this_attempt": 3, "resumed_from": None}
    [outputs] = tmp_path.glob("runs/sleep-*/attempt-1/outputs")
    assert str(outputs) in ended.stderr
    assert sorted(path.name for path in outputs.iterdir()) == ["artifact-1.bin", "artifact-2.bin"]


def test_without_a_terminal_progress_is_told_in_lines(tmp_path: Path) -> None:
    ended = jobs(tmp_path, "run", "sleep", "--params", '{"steps": 3}')
    assert "sleep: step 1 of 3, sleeping\n" in ended.stderr
    assert "%" not in ended.stderr


def test_at_a_terminal_progress_is_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    ended = subprocess.run(
        [*JOBS, "run", "sleep", "--params", '{"steps": 3}'],
        cwd=tmp_path,
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    with open(ours, errors="replace", buffering=1) as screen:  # noqa: PTH123 - a descriptor
        shown = ""
        try:
            while chunk := screen.readline():
                shown += chunk
        except OSError:  # how a terminal ends
            pass
    assert ended.returncode == 0
    assert "100%|" in shown
    assert "3/3" in shown


def test_params_may_come_from_a_file_and_inputs_are_read_in_place(tmp_path: Path) -> None:
    images = tmp_path / "mine" / "images"
    shutil.copytree(ROOT / "examples" / "digits" / "images" / "0", images)
    (tmp_path / "params.json").write_text(
        '{"dataset": "images", "image_size": 8, "channels": 8, "steps": 1, "batch_size": 2}'
    )
    ended = jobs(tmp_path, "run", "train_diffusion", "--params", "@params.json", "--inputs", "mine")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["images"] == len(list(images.iterdir()))
    assert "step 1" in ended.stderr  # what the job prints


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ('{"steps": 0}', "steps: Input should be greater than or equal to 1"),
        ('{"stps": "TELL-NOBODY"}', "stps: Extra inputs are not permitted"),
        ('{"seconds": "TELL-NOBODY"}', "seconds: Input should be a valid number"),
        ('"TELL-NOBODY"', "Input should be a valid dictionary"),
    ],
)
def test_wrong_params_are_explained_without_repeating_them(
    tmp_path: Path, params: str, said: str
) -> None:
    ended = jobs(tmp_path, "run", "sleep", "--params", params)
    assert ended.returncode == 1
    assert f"params_invalid: {said}" in ended.stderr.replace(
        "params_invalid: : ", "params_invalid: "
    )
    assert "print_lines" in ended.stderr  # it names those that there are
    assert "TELL-NOBODY" not in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_a_failure_is_told_with_its_code_and_where_it_comes_from(tmp_path: Path) -> None:
    ended = jobs(tmp_path, "run", "sleep", "--params", '{"fail_at": 1}')
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "job_error: RuntimeError: asked to fail at step 1" in ended.stderr
    assert "Traceback" in ended.stderr


PROGRAMS = str(ROOT / "examples" / "programs" / "programs.toml")


@needs_landlock
def test_a_declared_program_runs_by_hand(tmp_path: Path) -> None:
    given = json.dumps({"program": "train_plain", "params": {"steps": 5}})
    ended = jobs(tmp_path, "run", "command", "--params", given, WORKER_PROGRAMS=PROGRAMS)
    assert ended.returncode == 0, ended.stderr
    *_printed, result = ended.stdout.splitlines()
    assert json.loads(result) == {"program": "train_plain", "files": 1}


@pytest.mark.parametrize(
    ("given", "file", "sentence"),
    [
        ({"program": "train_plain"}, "", "name the file of them in WORKER_PROGRAMS"),
        ({"program": "train_plain"}, "/no/such/file", "WORKER_PROGRAMS: /no/such/file: No such"),
        ({"program": "trainer"}, PROGRAMS, "There is train_plain, picture_trainer."),
        ({"program": "train_plain", "params": {"steps": 0}}, PROGRAMS, "params_invalid: steps: "),
    ],
)
def test_a_program_that_cannot_run_by_hand_is_told_in_one_sentence(
    tmp_path: Path, given: dict[str, object], file: str, sentence: str
) -> None:
    ended = jobs(tmp_path, "run", "command", "--params", json.dumps(given), WORKER_PROGRAMS=file)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_told_the_nearest(tmp_path: Path) -> None:
    ended = jobs(tmp_path, "run", "slep")
    assert ended.returncode == 2
    assert "did you mean `sleep`?" in ended.stderr


# ---- stopped and resumed


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run in the folder `run`, which has begun."""
    params = '{"seconds": 600, "steps": 6000, "checkpoint_every": 1}'
    program = subprocess.Popen(
        [*JOBS, "run", "sleep", "--params", params, "--folder", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with program:
        assert program.stderr is not None
        while "step" not in program.stderr.readline():
            assert program.poll() is None
        yield program
        program.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_the_job_save_and_resume_goes_on(
    sleeper: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    sleeper.send_signal(number)
    said = sleeper.communicate()[1]
    assert sleeper.returncode == 1
    assert "stopped; --resume goes on" in said
    saved = last_checkpoint(tmp_path / "run")
    assert saved is not None
    done = int(saved.read_text())
    assert len(list((tmp_path / "run" / "attempt-1" / "sealed").iterdir())) == 1  # the last only
    ended = jobs(
        tmp_path,
        "run",
        "sleep",
        "--params",
        f'{{"steps": {done + 2}}}',
        "--folder",
        "run",
        "--resume",
    )
    assert json.loads(ended.stdout) == {"steps_run_by_this_attempt": 2, "resumed_from": done}


def test_a_job_that_does_not_stop_is_ended_by_the_second_ctrl_c(tmp_path: Path) -> None:
    params = '{"seconds": 600, "steps": 6000, "ignore_sigterm": true}'
    program = subprocess.Popen(
        [*JOBS, "run", "sleep", "--params", params],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with program:
        assert program.stderr is not None
        for awaited in ("step", "Ctrl-C again"):
            while awaited not in program.stderr.readline():
                assert program.poll() is None
            program.send_signal(signal.SIGINT)
        assert "ended at once" in program.stderr.read()
    assert program.returncode == 1


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    assert jobs(tmp_path, "run", "sleep", "--folder", "run").returncode == 0
    ended = jobs(tmp_path, "run", "sleep", "--folder", "run")
    assert ended.returncode == 1
    assert "holds a run already" in ended.stderr


def test_resume_without_a_folder_takes_the_newest_run(tmp_path: Path) -> None:
    assert "no run of sleep" in jobs(tmp_path, "run", "sleep", "--resume").stderr
    for steps in ("3", "5"):
        params = f'{{"steps": {steps}, "checkpoint_every": 1}}'
        assert jobs(tmp_path, "run", "sleep", "--params", params).returncode == 0
    ended = jobs(tmp_path, "run", "sleep", "--params", '{"steps": 9}', "--resume")
    assert json.loads(ended.stdout)["resumed_from"] == 5


# ---- prepare


PREPARING = """
import sys
from jobs import JOBS, Job, sleep
from jobs.cli.authoring import command
from child.prepare import Prepare

def fetch(setup):
    if "fail" in sys.argv:
        raise ConnectionError("the server is away")
    (setup.outputs / "weights").write_text("weights")

def use(context, params):
    return (context.prepared / "weights").read_text()

JOBS["prepares"] = Job(sleep.Params, use, Prepare("v1", fetch))
sys.exit(command(sys.argv[1:3]))
"""


def preparing(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARING, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WORKER_PREPARE_DIR": str(folder / "volume")},
    )


def test_prepare_sets_up_what_a_later_run_finds(tmp_path: Path) -> None:
    ended = preparing(tmp_path, "prepare", "prepares")
    assert ended.returncode == 0, ended.stderr
    assert f"is set up: {tmp_path}/volume/prepares-v1" in ended.stderr
    ran = preparing(tmp_path, "run", "prepares")
    assert json.loads(ran.stdout) == "weights"
    assert "preparing" not in ran.stderr


def test_what_cannot_be_set_up_fails_the_image_that_is_being_built(tmp_path: Path) -> None:
    ended = preparing(tmp_path, "prepare", "prepares", "fail")
    assert ended.returncode == 1
    assert "prepare_failed: setting up 'prepares' failed: ConnectionError" in ended.stderr


# ---- the worker's children pay nothing for it


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded in a new interpreter once it has run `code`."""
    code = f"import sys, jobs.__main__\n{code}\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_a_child_does_not_load_what_is_for_people() -> None:
    assert {"jobs.cli.authoring", "argparse", "tqdm"}.isdisjoint(loaded_by(""))


def test_a_child_loads_no_kind_but_its_own() -> None:
    loaded = loaded_by("jobs.__main__.JOBS['sleep']")
    assert "jobs.sleep" in loaded
    assert {"jobs.command", "programs", "jobs.diffusion"}.isdisjoint(loaded)
