"""The kind `command`, with real programs below real children, from a start to its files.

`odd_program.py` does on request what no program should. The shipped examples are run as they are.
"""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from child import runner
from child.confine import can_confine
from records.manifest import artifact_key
from tests.children import is_running
from tests.crowd import on_every_store, until
from tests.landlock import needs_landlock

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "programs" / "programs.toml"
ODD = Path(__file__).with_name("odd_program.py")


class Odd:
    """A worker that knows one program, `odd`, as a test declares it."""

    confined = can_confine()

    def __init__(self, crowd, folder, **changes):
        self._crowd = crowd
        self._file = folder / "programs.toml"
        self._changes = changes

    def declare(self, *deed, more="", program="{python}", **changes):
        items = ", ".join(json.dumps(item) for item in (program, str(ODD), *deed))
        env = "" if "env = " in more else 'env = { OUT = "{outputs}", CONFIG = "{work}/none" }'
        # Where the kernel cannot confine a program, that is what most tests are not about.
        confine = "" if self.confined or "confine =" in more else "confine = false"
        self._file.write_text(f"[programs.odd]\nargv = [{items}]\n{env}\n{confine}\n{more}\n")
        self.worker = self._crowd.worker(programs=self._file, **self._changes, **changes)
        return self

    def start(self, process_id="p", **params):
        given = {"program": "odd", "params": params}
        return self.worker("start", process_id, kind="command", process_id=process_id, params=given)

    async def file(self, path, process_id="p"):
        """What the store has of an artifact of the first attempt."""
        stored = await self._crowd.store.get(artifact_key(process_id, 1, path))
        return stored.data.decode()

    async def shown(self):
        return json.loads(await self.file("shown.json"))


@pytest.fixture
def odd(crowd, tmp_path):
    return Odd(crowd, tmp_path)


async def failure_of(odd, **params):
    reply = await odd.start(**params)
    assert reply["status"] == "failed", reply
    return reply["failure"]


# ---- what a program is given

PARAMS = """
    config = { note = "{note}", nested = [{ note = "{note}", list = "{list}" }], n = "{n}" }
    [programs.odd.params]
    note = { type = "str" }
    n = { type = "int", default = 3 }
    list = { type = "list", items = { type = "str" }, default = [] }
"""


@pytest.mark.parametrize("config_format", ["yaml", "json"])
async def test_values_arrive_as_they_are_on_the_command_line_and_in_the_config(odd, config_format):
    import yaml

    more = 'env = { OUT = "{outputs}", CONFIG = "{config}" }\n' + PARAMS.replace(
        "config =", f"config_format = '{config_format}'\nconfig ="
    )
    odd.declare("show", "{n}", "--note={note}", more=more)
    note = "a 'b' \"c\" $(id) `id` \\ ; \n- x: {y}\n# 1e5 é"
    reply = await odd.start(note=note, list=["--x", "no", "1e5"])
    assert reply["status"] == "completed", reply
    shown = await odd.shown()
    assert shown["argv"] == ["3", f"--note={note}"]
    config = (
        json.loads(shown["config"]) if config_format == "json" else yaml.safe_load(shown["config"])
    )
    nested = [{"note": note, "list": ["--x", "no", "1e5"]}]
    assert config == {"note": note, "nested": nested, "n": 3}


async def test_a_program_has_its_own_folders_no_input_and_only_what_is_passed_on(odd, monkeypatch):
    for name in ("FOR_JOBS", "FOR_NOBODY", "NOT_NAMED"):
        monkeypatch.setenv(name, "1")
    more = """
        env = { OUT = "{outputs}", WANDB_MODE = "offline" }
        pass_env = ["FOR_JOBS", "FOR_NOBODY"]
    """
    odd.declare("show", more=more, child_env="FOR_JOBS,NOT_NAMED")
    assert (await odd.start())["status"] == "completed"
    shown = await odd.shown()
    env, cwd = shown["env"], Path(shown["cwd"])
    assert (env["FOR_JOBS"], env["WANDB_MODE"]) == ("1", "offline")
    assert {"FOR_NOBODY", "NOT_NAMED"}.isdisjoint(env)
    assert cwd.name == "work"
    assert Path(env["HOME"]) == cwd.parent / "home"
    assert shown["stdin"] == ""


async def test_a_secret_reaches_the_program_and_nobody_else(odd, crowd):
    more = """
        env = { OUT = "{outputs}", TOKEN = "{pass}" }
        params.pass = { type = "str", secret = true }
    """
    odd.declare("show", more=more)
    reply = await odd.start(**{"pass": "open sesame"})
    assert (await odd.shown())["env"]["TOKEN"] == "open sesame"
    assert "open sesame" not in json.dumps(reply)
    record = await crowd.record("p")
    assert record.params == {"program": "odd", "params": {"pass": "**********"}}


# ---- what is refused, and what fails


async def test_kinds_shows_the_programs_and_leaves_the_kind_out_where_there_are_none(odd, crowd):
    odd.declare("do_nothing", more=PARAMS)
    [form] = (await odd.worker("kinds"))["kinds"]["command"]["oneOf"]
    assert form["properties"]["params"]["properties"]["n"]["default"] == 3
    assert "command" not in (await crowd.worker()("kinds"))["kinds"]


async def test_a_program_that_is_not_declared_is_refused_and_no_process_is_made(odd):
    odd.declare("do_nothing")
    reply = await odd.worker(
        "start", "p", kind="command", process_id="p", params={"program": "old"}
    )
    assert reply["error"]["code"] == "unknown_program"
    assert "did you mean `odd`" in reply["error"]["message"]
    assert (await odd.worker("process_status", process_id="p"))["status"] == "not_found"


async def test_a_program_that_is_not_there_fails_with_that_word(odd):
    failure = await failure_of(odd.declare(program="/no/such/program"))
    assert failure["code"] == "program_not_started"
    assert "'/no/such/program' could not be started: No such file" in failure["message"]


@pytest.mark.parametrize(
    ("deed", "code", "sentence"),
    [
        (("fail", "3", "my own words"), "program_failed", "exit code 3"),
        (("fail", "1", "RuntimeError: CUDA out of memory. Tried"), "cuda_out_of_memory", "GPU"),
        (("fail", "1", "CUDA error: out of memory"), "cuda_out_of_memory", "GPU"),
        (("die",), "host_out_of_memory", "memory"),
    ],
)
async def test_an_end_that_is_no_success_is_a_failure_with_its_cause(odd, deed, code, sentence):
    failure = await failure_of(odd.declare(*deed))
    assert failure["code"] == code
    assert sentence in failure["message"]
    assert deed[2:] == () or failure["log_tail"][-1] == deed[2]


@pytest.fixture
def shared_temporary(tmp_path, monkeypatch):
    """The folder for temporary files of this machine, as children see it."""
    shared = tmp_path / "temporary"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    return shared


async def test_what_a_killed_program_leaves_in_its_tmpdir_goes_with_its_attempt(
    crowd, odd, shared_temporary
):
    odd.declare("litter")
    start = asyncio.create_task(odd.start())
    folder = odd.worker.manager.parts.workplace.folder
    await until(lambda: [*folder.glob("p.*/outputs/littered")])
    [link] = shared_temporary.iterdir()
    assert link.is_symlink()
    assert (link / "large").resolve().is_relative_to(folder.resolve())
    [child] = odd.worker.children()
    os.killpg(child.pid, signal.SIGKILL)
    assert (await start)["status"] == "failed"
    assert not link.exists()
    assert not [*folder.glob("p.*")]
    await odd.declare("do_nothing").start("q")
    assert [*shared_temporary.iterdir()] == []


OUTPUT = """outputs = [{ path = "{outputs}/model.pt" }, { path = "x/*.png", required = false }]"""


async def test_an_exit_code_of_0_without_the_declared_output_is_a_failure(odd):
    failure = await failure_of(odd.declare("do_nothing", more=OUTPUT))
    assert failure["code"] == "output_missing"
    assert "model.pt" in failure["message"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
async def test_a_link_is_no_output(odd, target):
    failure = await failure_of(odd.declare("link", target, "model.pt", more=OUTPUT))
    assert failure["code"] == "output_missing"


async def test_outputs_in_its_work_folder_become_artifacts_by_their_paths_there(odd):
    more = 'outputs = [{ path = "runs/*.png" }]'
    reply = await odd.declare(
        "write", "runs/1/a.png", "runs/2/a.png", "junk.txt", more=more
    ).start()
    assert [file["path"] for file in reply["files"]] == ["runs/1/a.png", "runs/2/a.png"]


async def test_two_outputs_of_one_name_do_not_replace_each_other(odd):
    odd.declare("write", "model.pt", "{outputs}/model.pt", more='outputs = [{ path = "*.pt" }]')
    assert (await failure_of(odd))["code"] == "output_collision"


@needs_landlock
async def test_a_program_cannot_write_outside_of_its_folder_and_is_told_where_it_can(odd, tmp_path):
    failure = await failure_of(odd.declare("write", str(tmp_path / "outside.txt")))
    assert failure["code"] == "program_failed"
    assert "below its own folder only, and where `writable`" in failure["message"]
    assert failure["log_tail"][-1].startswith("PermissionError")
    assert not (tmp_path / "outside.txt").exists()


@pytest.fixture
def no_landlock(odd, monkeypatch):
    monkeypatch.setattr(runner, "ENTRY", (str(Path(__file__).with_name("no_landlock_jobs.py")),))
    odd.confined = True  # nothing is declared in its place


async def test_where_the_kernel_cannot_hold_a_program_to_its_folder_it_is_not_started(
    odd, no_landlock, tmp_path
):
    failure = await failure_of(odd.declare("write", str(tmp_path / "outside.txt")))
    assert (failure["code"], failure["retryable"]) == ("program_not_confined", True)
    assert "`confine = false`" in failure["message"]
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kernel", ["this one", "one without Landlock"])
async def test_a_program_that_is_trusted_to_write_anywhere_does_so_on_every_kernel(
    odd, request, tmp_path, crowd, kernel
):
    if kernel != "this one":
        request.getfixturevalue("no_landlock")
    odd.declare("write", str(tmp_path / "outside.txt"), more="confine = false")
    assert (await odd.start())["status"] == "completed"
    assert (tmp_path / "outside.txt").exists()
    log = (await crowd.store.get("processes/p/attempts/1/logs/tail.txt")).data.decode()
    assert "nothing keeps it from writing outside of its folder" in log


async def test_a_failure_that_has_nothing_to_do_with_writing_does_not_speak_of_it(odd):
    failure = await failure_of(odd.declare("fail", "3", "no such file"))
    assert failure["message"] == "The program ended with exit code 3."


async def test_no_link_has_the_worker_write_outside_of_the_folder_for_a_program(odd, tmp_path):
    (tmp_path / "victim").mkdir()
    odd.declare(
        "mislead",
        "../outputs/sub",
        str(tmp_path / "victim"),
        "sub/evil.py",
        more='outputs = [{ path = "sub/*" }]',
    )
    failure = await failure_of(odd)
    assert failure["code"] == "output_missing"
    assert "'sub/evil.py' has no place" in failure["message"]
    assert list((tmp_path / "victim").iterdir()) == []


@needs_landlock
async def test_a_program_may_name_its_threads_as_cuda_does_before_it_looks_for_a_gpu(odd):
    odd.declare("write", "/proc/thread-self/comm")
    assert (await odd.start())["status"] == "completed"


async def test_a_program_may_write_where_its_declaration_says(odd, tmp_path):
    (tmp_path / "cache").mkdir()
    more = f'writable = ["{tmp_path}/cache"]'
    odd.declare("write", str(tmp_path / "cache" / "file.txt"), more=more)
    assert (await odd.start())["status"] == "completed"
    assert (tmp_path / "cache" / "file.txt").exists()


async def test_a_daemon_that_outlives_its_program_is_a_failure_and_is_killed(odd, monkeypatch):
    odd.declare("leave_daemon", "{outputs}/pid")
    failure = await failure_of(odd)
    assert failure["code"] == "program_left_processes"
    assert "1 of the processes" in failure["message"]
    assert not is_running(int(await odd.file("pid")))


# ---- progress


async def test_a_progress_file_becomes_progress_nonsense_and_unfinished_lines_aside(odd):
    reply = await odd.declare("report", more='progress.file = "progress.jsonl"').start()
    progress = reply["progress"]
    assert (progress["step"], progress["total"], progress["message"]) == (2, 4, "training")
    assert progress["metrics"] == {"loss": 0.25}


async def test_the_number_of_steps_may_be_a_param(odd):
    more = """
        progress = { lines = 'step (?P<step>[0-9]+)', total = "steps" }
        params.steps = { type = "int" }
    """
    reply = await odd.declare("say", "step 3", more=more).start(steps=12)
    assert (reply["progress"]["step"], reply["progress"]["percent"]) == (3, 25)


async def test_a_progress_file_that_floods_the_disk_fails_the_process(odd):
    odd.declare("flood", more='progress = { file = "progress.jsonl", max_bytes = 100_000 }')
    assert (await failure_of(odd))["code"] == "progress_flood"


async def test_a_flood_of_lines_neither_stops_the_program_nor_hides_its_progress(odd):
    odd.declare("flood_lines", more="progress.lines = 'step (?P<step>\\d+)/(?P<total>\\d+)'")
    reply = await odd.start()
    assert reply["status"] == "completed", reply
    assert reply["progress"]["step"] == 49


# ---- stopping

LINES = "progress.lines = 'step (?P<step>\\d+)/(?P<total>\\d+)'\n"
SAVES = (
    LINES
    + """
    stop_signal = "SIGINT"
    checkpoints = { path = "ckpt/*.txt", settle_seconds = 0.2 }
"""
)


async def running(odd, process_id="p"):
    held = asyncio.create_task(odd.start(process_id))
    odd.worker.held.append(held)
    await odd.worker.seen(process_id, "running", step=1)
    return held


async def test_cancel_ends_a_program_that_ignores_sigterm_and_its_daemon(odd, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    odd.declare("be_stubborn", str(pids / "daemon"), more=f"{LINES}writable = ['{pids}']")
    held = await running(odd)
    daemon = int((pids / "daemon").read_text())
    assert is_running(daemon)
    view = await odd.worker("cancel", process_id="p")
    assert view["status"] == "cancelled"
    assert not is_running(daemon)
    assert (await held)["status"] == "cancelled"


@pytest.mark.parametrize("then", [[], ["and stay"]])
async def test_what_it_saves_when_it_is_told_to_stop_is_handed_over(odd, crowd, then):
    """Also by one that saves and then does not end: it has settled by the time it is killed."""
    odd.declare("save_when_told", *then, more=SAVES, cancel_grace_seconds=8, grace_seconds=20)
    held = await running(odd)
    await odd.worker.manager.drain()
    assert (await held)["status"] == "interrupted"
    [checkpoint] = (await crowd.record("p")).checkpoints
    assert [file.path for file in checkpoint.files] == [".handed/work/ckpt/last.txt"]


async def test_a_checkpoint_that_is_still_written_is_not_handed_over(odd, crowd):
    more = LINES + 'checkpoints = { path = "c.bin", settle_seconds = 0.3 }'
    odd.declare("write_slowly", "c.bin", more=more)
    held = await running(odd)
    await odd.worker.manager.drain()
    assert (await held)["status"] == "interrupted"
    assert (await crowd.record("p")).checkpoints == ()


# ---- the examples


async def example(worker, name, params, process_id="e", **more):
    given = {"program": name, "params": params}
    return await worker(
        "start", process_id, kind="command", process_id=process_id, params=given, **more
    )


async def model_of(crowd, attempt, path, process_id="e"):
    return (await crowd.store.get(artifact_key(process_id, attempt, path))).data


@needs_landlock
@on_every_store
async def test_the_plain_script_runs_to_its_end(crowd):
    reply = await example(
        crowd.worker(programs=EXAMPLES), "train_plain", {"steps": 300, "note": "-- 'it' works"}
    )
    assert reply["status"] == "completed", reply
    assert [file["path"] for file in reply["files"]] == ["model.json"]
    assert reply["progress"]["percent"] == 100
    model = json.loads(await model_of(crowd, 1, "model.json"))
    assert (model["slope"], model["offset"]) == pytest.approx((3, -1), abs=0.05)
    assert model["note"] == "-- 'it' works"
    assert reply["progress"]["metrics"]["loss"] == pytest.approx(model["loss"], abs=1e-4)


@needs_landlock
@on_every_store
async def test_a_killed_worker_loses_no_more_than_since_the_last_checkpoint(crowd):
    """The same model as without a kill, made by another worker from the checkpoint on."""
    params = {"steps": 120, "save_every": 10}
    undisturbed = crowd.worker(programs=EXAMPLES)
    await example(undisturbed, "train_plain", params | {"seconds_per_step": 0.0}, "whole")
    slow = params | {"seconds_per_step": 0.05}
    worker = crowd.worker(programs=EXAMPLES)
    worker.held.append(asyncio.create_task(example(worker, "train_plain", slow)))
    await crowd.record_when("e", lambda record: record.checkpoints)
    await worker.die()
    reply = await example(crowd.heir(programs=EXAMPLES), "train_plain", slow)
    assert (reply["status"], reply["attempt"]) == ("completed", 2)
    log = (await crowd.store.get("processes/e/attempts/2/logs/tail.txt")).data.decode()
    assert "resuming from step" in log
    assert await model_of(crowd, 2, "model.json") == await model_of(crowd, 1, "model.json", "whole")


@pytest.fixture
async def pictures(crowd):
    """An input folder of digits, as an upload would have left it."""
    worker = crowd.worker()
    paths = sorted((ROOT / "examples" / "digits" / "images" / "3").glob("*.png"))[:20]
    for path in paths:
        await crowd.store.put(f"inputs/digits/{path.name}", path.read_bytes())
    reply = await worker("upload", folder="digits", complete=True)
    assert "error" not in reply, reply
    return {"faces": "folder:digits"}


TRAINING = {"dataset": "faces", "steps": 60, "save_every": 20, "sample_every": 20, "batch_size": 8}


@needs_landlock
async def test_a_real_trainer_is_driven_by_its_config_file_from_end_to_end(crowd, pictures):
    """PyTorch Lightning, with a config in ai-toolkit's shape."""
    worker = crowd.worker(programs=EXAMPLES)
    reply = await example(worker, "picture_trainer", TRAINING, inputs=pictures)
    assert reply["status"] == "completed", reply
    assert [file["path"] for file in reply["files"]] == [
        "output/pictures.pt",
        *(f"output/samples/step-{step:06d}.png" for step in (20, 40, 60)),
    ]
    assert (reply["progress"]["step"], reply["progress"]["total"]) == (60, 60)
    assert reply["progress"]["metrics"]["loss"] < 0.2


@needs_landlock
async def test_the_real_trainer_resumes_from_its_own_checkpoint_with_its_samples(crowd, pictures):
    params = TRAINING | {"steps": 5000, "save_every": 100, "sample_every": 100}
    worker = crowd.worker(programs=EXAMPLES)
    worker.held.append(
        asyncio.create_task(example(worker, "picture_trainer", params, inputs=pictures))
    )
    await crowd.record_when("e", lambda record: record.checkpoints)
    await worker.die()
    heir = crowd.heir(programs=EXAMPLES)
    reply = await example(heir, "picture_trainer", params, inputs=pictures)
    assert (reply["status"], reply["attempt"]) == ("completed", 2), reply
    paths = [file["path"] for file in reply["files"]]
    assert paths.count("output/samples/step-000100.png") == 1
    assert len(paths) == 51
    log = (await crowd.store.get("processes/e/attempts/2/logs/tail.txt")).data.decode()
    assert "Restor" in log
