"""The kind `train_diffusion`, run as the plain function that it is, on images made up here."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from child.context import JobFailed, JobStopped
from jobs.diffusion import training
from jobs.diffusion.params import TrainingParams
from jobs.diffusion.train_diffusion import run
from jobs.diffusion.unet import UNet
from tests.images import give, png, zipped
from tests.job_attempt import JobAttempt

STEPS = 12


class Killed(BaseException):
    """What a SIGKILL looks like from inside: the job gets no chance to do anything."""


class Attempt(JobAttempt):
    """An attempt of a training, which can also be killed at a step."""

    kill_at: int | None = None

    def run(
        self, params: TrainingParams, *, stop_at: int | None = None, kill_at: int | None = None
    ) -> Any:
        self.stop_at, self.kill_at = stop_at, kill_at
        return run(self.context, params)

    def hear(self, event: dict[str, Any]) -> None:
        super().hear(event)
        if event["event"] == "progress" and event["step"] == self.kill_at:
            raise Killed


def tiny(**changes: Any) -> TrainingParams:
    """A training that takes a second."""
    small: dict[str, Any] = {
        "dataset": "images",
        "image_size": 9,
        "channels": 8,
        "steps": STEPS,
        "batch_size": 5,
        "sample_every": 4,
        "checkpoint_every": 5,
    }
    return TrainingParams(**(small | changes))


IMAGES = {f"images/{number}.png": png(number) for number in range(7)}


@pytest.fixture(autouse=True, scope="module")
def quick_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAMPLER_STEPS", 2)
        yield


@pytest.fixture
def new_attempt(tmp_path: Path) -> Callable[..., Attempt]:
    """Make the next attempt, as if on another worker: same inputs, no outputs, other luck."""
    numbers = iter(range(1, 100))

    def make(resume_from: Path | None = None) -> Attempt:
        number = next(numbers)
        torch.manual_seed(1000 + number)
        attempt = Attempt(tmp_path / f"attempt-{number}", resume_from=resume_from)
        give(attempt.context, IMAGES)
        return attempt

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    attempt = Attempt(tmp_path_factory.mktemp("undisturbed"))
    give(attempt.context, IMAGES)
    attempt.run(tiny())
    return attempt


# ---- what it makes


def test_the_outputs_are_complete_and_offered(undisturbed: Attempt) -> None:
    offered = [event["path"] for event in undisturbed.named("artifact")]
    assert (
        sorted(set(offered))
        == sorted(undisturbed.outputs())
        == [
            "config.json",
            "loss.png",
            "metrics.jsonl",
            "model.safetensors",
            "samples/step-000004.png",
            "samples/step-000008.png",
            "samples/step-000012.png",
        ]
    )


def test_samples_can_be_fetched_while_the_training_goes_on(undisturbed: Attempt) -> None:
    kinds = [(event["event"], event.get("path", event.get("step"))) for event in undisturbed.events]
    assert kinds.index(("artifact", "samples/step-000004.png")) < kinds.index(("progress", 5))


def test_metrics_and_plot_can_be_fetched_while_the_training_goes_on(
    new_attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PLOT_SECONDS", 0)
    attempt = new_attempt()
    with pytest.raises(Killed):
        attempt.run(tiny(), kill_at=5)
    outputs = attempt.outputs()
    assert len(outputs["metrics.jsonl"].splitlines()) == 4
    assert {"metrics.jsonl", "loss.png"} <= {event["path"] for event in attempt.named("artifact")}


def test_the_log_tells_a_person_how_it_goes(
    new_attempt: Callable[..., Attempt], capsys: pytest.CaptureFixture[str]
) -> None:
    new_attempt().run(tiny(steps=8))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("7 images of 9 x 9, ")
    assert said[1].startswith("step 4 of 8: loss ")
    assert "step 5: checkpoint saved" in said


def test_progress_comes_with_every_step_and_shows_the_loss(undisturbed: Attempt) -> None:
    shown = [event for event in undisturbed.named("progress") if event["message"] == "training"]
    assert [event["step"] for event in shown] == list(range(1, STEPS + 1))
    assert all(event["total"] == STEPS and event["metrics"]["loss"] > 0 for event in shown)


def test_the_metrics_have_a_line_for_every_step(undisturbed: Attempt) -> None:
    rows = [json.loads(line) for line in undisturbed.outputs()["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_config_and_weights_are_all_it_takes_to_rebuild_the_model(undisturbed: Attempt) -> None:
    config = json.loads(undisturbed.outputs()["config.json"])
    model = UNet(**config["network"]["arguments"])
    weights = load_file(undisturbed.context.outputs / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    model.load_state_dict(weights, strict=True)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_the_result_names_what_a_caller_looks_for_first(
    new_attempt: Callable[..., Attempt],
) -> None:
    result = new_attempt().run(tiny(steps=2))
    assert result["steps"] == 2
    assert result["images"] == len(IMAGES)
    assert result["device"] == "cpu"
    assert result["sample"] == "samples/step-000002.png"
    assert result["model"] == "model.safetensors"
    assert result["loss_plot"] == "loss.png"


def test_the_loss_falls(new_attempt: Callable[..., Attempt]) -> None:
    attempt = new_attempt()
    attempt.run(tiny(steps=60, sample_every=60, learning_rate=0.01))
    rows = [json.loads(line)["loss"] for line in attempt.outputs()["metrics.jsonl"].splitlines()]
    assert sum(rows[-10:]) < 0.7 * sum(rows[:10])


def test_a_training_that_diverges_fails_instead_of_going_on(
    new_attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.flow_loss
    monkeypatch.setattr(training, "flow_loss", lambda *given: real(*given) * torch.inf)
    with pytest.raises(JobFailed) as failed:
        new_attempt().run(tiny())
    assert failed.value.code == "training_diverged"


# ---- stopped and resumed: the same bytes as if nothing had happened


@pytest.mark.parametrize("step", [1, 4, 5, 7, 11])
def test_stopped_at_any_step_and_resumed_it_ends_with_the_same_bytes(
    step: int, new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    first = new_attempt()
    with pytest.raises(JobStopped):
        first.run(tiny(), stop_at=step)
    assert first.last_checkpoint().name == f"step-{step:06d}"
    second = new_attempt(first.last_checkpoint())
    second.run(tiny())
    assert second.outputs() == undisturbed.outputs()


def test_killed_between_checkpoints_it_repeats_what_was_lost(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    first = new_attempt()
    with pytest.raises(Killed):
        first.run(tiny(), kill_at=9)
    assert first.last_checkpoint().name == "step-000005"
    second = new_attempt(first.last_checkpoint())
    second.run(tiny())
    assert second.outputs() == undisturbed.outputs()


def test_interrupted_again_and_again(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    attempt = new_attempt()
    for stop_at in (2, 3, 8):
        with pytest.raises(JobStopped):
            attempt.run(tiny(), stop_at=stop_at)
        attempt = new_attempt(attempt.last_checkpoint())
    attempt.run(tiny())
    assert attempt.outputs() == undisturbed.outputs()


def test_stopped_before_the_first_step(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    first = new_attempt()
    with pytest.raises(JobStopped):
        first.run(tiny(), stop_at=0)  # while it reads the images
    second = new_attempt()
    second.run(tiny())
    assert second.outputs() == undisturbed.outputs()


def test_resumed_from_its_very_end_it_only_writes_the_results(
    new_attempt: Callable[..., Attempt],
) -> None:
    params = tiny(checkpoint_every=STEPS)
    first = new_attempt()
    first.run(params)
    second = new_attempt(first.last_checkpoint())
    second.run(params)
    assert second.outputs() == first.outputs()


def test_a_resumed_attempt_offers_the_earlier_samples_too(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    first = new_attempt()
    with pytest.raises(JobStopped):
        first.run(tiny(), stop_at=9)
    second = new_attempt(first.last_checkpoint())
    second.run(tiny())
    assert sorted(event["path"] for event in second.named("artifact")) == sorted(
        undisturbed.outputs()
    )


def test_a_checkpoint_of_other_images_is_refused(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    attempt = new_attempt(undisturbed.last_checkpoint())
    give(attempt.context, {"images/one-more.png": png(99)})
    with pytest.raises(JobFailed, match="other images") as failed:
        attempt.run(tiny())
    assert failed.value.code == "checkpoint_mismatch"


def test_a_checkpoint_cannot_run_code(new_attempt: Callable[..., Attempt], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "it ran",)

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "training.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(JobFailed) as failed:
        new_attempt(folder).run(tiny())
    assert failed.value.code == "checkpoint_broken"
    assert not (tmp_path / "it ran").exists()


# ---- data; what can be wrong with it is in test_image_dataset.py


def test_a_zip_is_as_good_as_a_folder(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    attempt = new_attempt()
    give(attempt.context, {"images.zip": zipped(IMAGES)})
    attempt.run(tiny(dataset="images.zip"))
    assert attempt.outputs()["model.safetensors"] == undisturbed.outputs()["model.safetensors"]


def test_other_files_are_ignored_and_counted(new_attempt: Callable[..., Attempt]) -> None:
    attempt = new_attempt()
    give(attempt.context, {"images/README.md": b"hello", "images/._0.png": b"a shadow of macOS"})
    result = attempt.run(tiny(steps=1))
    assert (result["images"], result["ignored_files"]) == (len(IMAGES), 2)


# ---- params


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 7},
        {"image_size": 257},
        {"channels": 12},
        {"channels": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"seed": -1},
        {"sample_every": 0},
        {"steps": 1000, "sample_every": 1},
        {"device": "tpu"},
        {"color": "blue"},
        {"chanels": 8},
    ],
    ids=str,
)
def test_limits(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny(**changes)


@pytest.mark.parametrize("path", ["", "/etc", "../other", "a/../../b", "a//b", "a/", ".", "a\0b"])
def test_a_dataset_cannot_be_looked_for_elsewhere(path: str) -> None:
    with pytest.raises(ValidationError):
        tiny(dataset=path)


def test_every_field_is_described() -> None:
    assert all(field.description for field in TrainingParams.model_fields.values())


def test_cuda_on_a_worker_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFailed) as failed:
        Attempt(tmp_path).run(tiny(device="cuda"))
    assert failed.value.code == "device_missing"


def test_the_parent_gets_the_params_without_torch() -> None:
    code = (
        "import sys, jobs.diffusion.train_diffusion as job; job.TrainingParams(dataset='images');"
        "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'safetensors'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize("size", [8, 9, 31, 64])
def test_the_network_takes_any_image_size(size: int) -> None:
    model = UNet(image_size=size, colors=3, channels=8)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size), torch.zeros(2)).shape == (2, 3, size, size)
