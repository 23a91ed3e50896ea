"""The kind `generate_images`, on a tiny model: as a plain function, and after its training."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from child.context import JobContext, JobFailed, JobStopped
from jobs.diffusion import generation, train_diffusion, training
from jobs.diffusion.generate_images import run
from jobs.diffusion.generation import generate, load_model, seed_of
from jobs.diffusion.model_file import KEY
from jobs.diffusion.params import GenerationParams, TrainingParams
from tests.crowd import on_every_store
from tests.images import give, png
from tests.job_attempt import JobAttempt

CPU = torch.device("cpu")
STEPS = 2
#: In three batches of a CPU, the last one not full.
COUNT = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a training."""
    context = JobContext(tmp_path_factory.mktemp("training"), device="cpu")
    give(context, {f"images/{number}.png": png(number) for number in range(7)})
    params = TrainingParams(dataset="images", image_size=8, channels=8, steps=3, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAMPLER_STEPS", 1)
        train_diffusion.run(context, params)
    return context.outputs


class Attempt(JobAttempt):
    """An attempt that is given a model."""

    def __init__(self, folder: Path, model: Path, *, resume_from: Path | None = None) -> None:
        super().__init__(folder, resume_from=resume_from)
        copy = shutil.copytree if model.is_dir() else shutil.copy
        copy(model, self.context.inputs / "model")

    def run(self, *, stop_at: int | None = None, **params: Any) -> Any:
        self.stop_at = stop_at
        return run(self.context, GenerationParams(**({"count": COUNT, "steps": STEPS} | params)))

    def seeds(self) -> dict[str, Any]:
        table: dict[str, Any] = json.loads(self.outputs()["seeds.json"])
        return table


@pytest.fixture
def new_attempt(tmp_path: Path, trained: Path) -> Callable[..., Attempt]:
    """Make the next attempt, as if on another worker."""
    numbers = iter(range(1, 100))

    def make(model: Path = trained, **changes: Any) -> Attempt:
        return Attempt(tmp_path / f"attempt-{next(numbers)}", model, **changes)

    return make


@pytest.fixture(scope="module")
def undisturbed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    attempt = Attempt(tmp_path_factory.mktemp("undisturbed"), trained)
    attempt.run()
    return attempt


# ---- what it makes


def test_the_outputs_are_complete_and_each_is_offered_once(undisturbed: Attempt) -> None:
    offered = [event["path"] for event in undisturbed.named("artifact")]
    images = [f"images/{number:05d}.png" for number in range(COUNT)]
    assert offered == [*images, "contact_sheet.png", "seeds.json"]
    assert sorted(offered) == sorted(undisturbed.outputs())


def test_images_have_the_size_and_colors_of_the_model(undisturbed: Attempt) -> None:
    with Image.open(undisturbed.context.outputs / "images/00000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "RGB")


def test_the_seeds_have_the_hash_of_each_file(undisturbed: Attempt) -> None:
    rows = undisturbed.seeds()["images"]
    assert [row["index"] for row in rows] == list(range(COUNT))
    for row in rows:
        data = (undisturbed.context.outputs / row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["seed"] == seed_of(0, row["index"])
    assert len({row["sha256"] for row in rows}) == COUNT


def test_the_seeds_name_the_model(undisturbed: Attempt, trained: Path) -> None:
    digest = hashlib.sha256((trained / "model.safetensors").read_bytes()).hexdigest()
    assert undisturbed.seeds()["model_sha256"] == digest


def test_images_can_be_fetched_while_the_others_are_made(undisturbed: Attempt) -> None:
    kinds = [(event["event"], event.get("path", event.get("step"))) for event in undisturbed.events]
    assert kinds.index(("artifact", "images/00000.png")) < kinds.index(("progress", STEPS + 1))


def test_progress_comes_with_every_step_of_every_batch(undisturbed: Attempt) -> None:
    shown = undisturbed.named("progress")
    assert [event["step"] for event in shown] == list(range(1, 3 * STEPS + 1))
    assert {event["total"] for event in shown} == {3 * STEPS}
    assert all(event["metrics"]["images_per_second"] > 0 for event in shown)


@pytest.mark.parametrize(("count", "across", "down"), [(1, 1, 1), (3, 2, 2), (5, 3, 2)])
def test_the_contact_sheet_shows_all_in_a_grid(
    new_attempt: Callable[..., Attempt], count: int, across: int, down: int
) -> None:
    attempt = new_attempt()
    attempt.run(count=count)
    with Image.open(attempt.context.outputs / "contact_sheet.png") as sheet:
        assert sheet.width * down == sheet.height * across
        assert sheet.width > 600


def test_the_contact_sheet_of_very_many_shows_the_first(
    new_attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SHEET_IMAGES", 4)
    many, few = new_attempt(), new_attempt()
    many.run(count=9)
    few.run(count=4)
    assert many.outputs()["contact_sheet.png"] == few.outputs()["contact_sheet.png"]


def test_a_model_may_be_a_file(
    new_attempt: Callable[..., Attempt], trained: Path, undisturbed: Attempt
) -> None:
    attempt = new_attempt(trained / "model.safetensors")
    attempt.run()
    assert attempt.outputs() == undisturbed.outputs()


# ---- the same seed, the same pixels


def test_the_same_again_is_the_same_and_another_seed_is_not(
    new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    again, other = new_attempt(), new_attempt()
    again.run()
    other.run(seed=1)
    assert again.outputs() == undisturbed.outputs()
    pixels = [{row["sha256"] for row in each.seeds()["images"]} for each in (again, other)]
    assert pixels[0].isdisjoint(pixels[1])


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_an_image_is_the_same_whatever_the_count_is(
    count: int, new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    attempt = new_attempt()
    attempt.run(count=count)
    assert attempt.seeds()["images"] == undisturbed.seeds()["images"][:count]


@pytest.fixture
def untamed(trained: Path) -> Any:
    """A model whose every layer matters: three steps of training leave most near zero."""
    model = load_model(trained / "model.safetensors", CPU)
    generator = torch.Generator().manual_seed(0)
    for weight in model.network.parameters():
        weight.normal_(std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("together", [1, 2, 3, 4])
def test_an_image_is_the_same_in_any_company(
    untamed: Any, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "to_pixels", lambda images: images)  # to the last bit
    seeds = [seed_of(0, number) for number in range(8)]
    batches = [seeds[first : first + together] for first in range(0, 8, together)]
    apart = np.concatenate([generate(untamed, batch, 5) for batch in batches])
    assert np.array_equal(apart, generate(untamed, seeds, 5))


def test_the_images_of_a_large_model_are_made_one_by_one(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained / "model.safetensors"
    monkeypatch.setattr(generation, "NUMBERS_TOGETHER", 8 * 8 * 8 * 5)
    assert load_model(path, CPU).batch_size == 5
    monkeypatch.setattr(generation, "NUMBERS_TOGETHER", 1)
    assert load_model(path, CPU).batch_size == 1


# ---- stopped and resumed


@pytest.mark.parametrize(("step", "kept"), [(STEPS + 1, 8), (2 * STEPS, 8), (2 * STEPS + 1, 16)])
def test_stopped_and_resumed_it_redoes_no_finished_image_and_ends_with_the_same_bytes(
    step: int, kept: int, new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    first = new_attempt()
    with pytest.raises(JobStopped):
        first.run(stop_at=step)
    second = new_attempt(resume_from=first.last_checkpoint())
    assert second.run()["made_by_this_attempt"] == COUNT - kept
    assert second.outputs() == undisturbed.outputs()
    steps = [event["step"] for event in second.named("progress")]
    assert steps == list(range(kept // 8 * STEPS + 1, 3 * STEPS + 1))


def test_stopped_before_the_first_image_there_is_nothing_to_keep(
    new_attempt: Callable[..., Attempt],
) -> None:
    attempt = new_attempt()
    with pytest.raises(JobStopped):
        attempt.run(stop_at=1)
    assert attempt.named("checkpoint") == []


@pytest.mark.parametrize(("every", "checkpoints"), [(1, 2), (9, 1), (100, 0)])
def test_checkpoints_come_every_so_many_images(
    every: int, checkpoints: int, new_attempt: Callable[..., Attempt]
) -> None:
    attempt = new_attempt()
    attempt.run(checkpoint_every=every)
    assert len(attempt.named("checkpoint")) == checkpoints


def test_a_checkpoint_of_another_process_is_refused(new_attempt: Callable[..., Attempt]) -> None:
    first = new_attempt()
    first.run(checkpoint_every=1)
    with pytest.raises(JobFailed) as failed:
        new_attempt(resume_from=first.last_checkpoint()).run(seed=5)
    assert failed.value.code == "checkpoint_mismatch"


def test_a_broken_checkpoint_is_a_failure(
    new_attempt: Callable[..., Attempt], tmp_path: Path
) -> None:
    broken = tmp_path / "images.zip"
    broken.write_bytes(b"PK and nothing more")
    with pytest.raises(JobFailed) as failed:
        new_attempt(resume_from=broken).run()
    assert failed.value.code == "checkpoint_broken"


# ---- bad models: each a failure with a name, before anything is made


def described(**changes: Any) -> str:
    network = {"network": "unet", "sampler": "rectified_flow"}
    sizes = {"image_size": 8, "colors": 3, "channels": 8}
    return json.dumps(network | sizes | changes)


def rewritten(trained: Path, path: Path, metadata: dict[str, str], **changes: torch.Tensor) -> None:
    save_file(load_file(trained / "model.safetensors") | changes, path, metadata)


#: How a file gets other than it should be, and the code of what comes of it.
BAD: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "empty": ("model_broken", lambda _good, path: path.write_bytes(b"")),
    "a pickle": ("model_broken", lambda _good, path: torch.save({}, path)),
    "cut off": (
        "model_broken",
        lambda good, path: path.write_bytes((good / "model.safetensors").read_bytes()[:-100]),
    ),
    "longer than it says": (
        "model_broken",
        lambda good, path: path.write_bytes((good / "model.safetensors").read_bytes() + b"more"),
    ),
    "an endless header": (
        "model_broken",
        lambda _good, path: path.write_bytes(struct.pack("<Q", 1 << 62) + b"{"),
    ),
    "a header of much nesting": (
        "model_broken",
        lambda _good, path: path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
    ),
    "weights that are no numbers": (
        "model_broken",
        lambda good, path: rewritten(
            good, path, {KEY: described()}, **{"leave.2.bias": torch.full((3,), torch.nan)}
        ),
    ),
    "weights without end": (
        "model_broken",
        lambda good, path: rewritten(
            good, path, {KEY: described()}, **{"leave.2.bias": torch.full((3,), 3e38)}
        ),
    ),
    "no description": ("model_unknown", lambda good, path: rewritten(good, path, {})),
    "a description that is no JSON": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: "__import__('os')"}),
    ),
    "a description of much nesting": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: "[" * 100_000}),
    ),
    "another network": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described(network="os.system")}),
    ),
    "a field too many": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described(url="http://example.com")}),
    ),
    "a size beyond all memory": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described(channels=1 << 40)}),
    ),
    "a size that is a text": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described(image_size="8")}),
    ),
    "other shapes than described": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described(channels=16)}),
    ),
    "fewer tensors than described": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described(image_size=64)}),
    ),
    "a tensor too many": (
        "model_unknown",
        lambda good, path: rewritten(good, path, {KEY: described()}, more=torch.zeros(1)),
    ),
    "numbers of another type": (
        "model_unknown",
        lambda good, path: rewritten(
            good, path, {KEY: described()}, **{"leave.2.bias": torch.zeros(3).double()}
        ),
    ),
}


@pytest.mark.parametrize(("code", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_model_is_a_failure_with_a_name(
    code: str,
    spoil: Callable[[Path, Path], object],
    trained: Path,
    tmp_path: Path,
    new_attempt: Callable[..., Attempt],
) -> None:
    path = tmp_path / "bad"
    spoil(trained, path)
    attempt = new_attempt(path)
    with pytest.raises(JobFailed) as failed:
        attempt.run()
    assert failed.value.code == code, failed.value
    assert list((attempt.context.outputs / "images").glob("*")) == []


def test_these_bad_models_are_bad_for_what_is_said_only(
    trained: Path, tmp_path: Path, new_attempt: Callable[..., Attempt], undisturbed: Attempt
) -> None:
    rewritten(trained, tmp_path / "good", {KEY: described()})
    attempt = new_attempt(tmp_path / "good")
    attempt.run()
    assert attempt.outputs()["images/00000.png"] == undisturbed.outputs()["images/00000.png"]


@pytest.mark.parametrize("name", ["other", "model/nothing"])
def test_a_model_that_is_not_there(name: str, new_attempt: Callable[..., Attempt]) -> None:
    with pytest.raises(JobFailed, match="which are: model") as failed:
        new_attempt().run(model=name)
    assert failed.value.code == "model_missing"


def test_a_link_to_elsewhere_is_not_followed(
    new_attempt: Callable[..., Attempt], trained: Path
) -> None:
    attempt = new_attempt()
    (attempt.context.inputs / "link").symlink_to(trained / "model.safetensors")
    with pytest.raises(JobFailed, match="elsewhere") as failed:
        attempt.run(model="link")
    assert failed.value.code == "model_missing"


def test_a_loaded_model_has_nothing_to_do_with_its_file_any_more(
    trained: Path, tmp_path: Path
) -> None:
    """It is kept for attempts that come when the first one's inputs are gone."""
    path = tmp_path / "model.safetensors"
    shutil.copy(trained / "model.safetensors", path)
    loaded = load_model(path, CPU).network.state_dict()
    with path.open("r+b") as file:  # in its place: removing it would leave what is mapped
        file.write(bytes(path.stat().st_size))
    original = load_model(trained / "model.safetensors", CPU).network.state_dict()
    assert all(torch.equal(loaded[name], original[name]) for name in original)


def test_a_training_describes_its_model_in_one_entry(trained: Path) -> None:
    """Several would be written in no fixed order, and a resumed training has the same bytes."""
    with safe_open(trained / "model.safetensors", framework="pt") as file:  # type: ignore[no-untyped-call]
        assert file.metadata() == {KEY: described()}


# ---- params


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"count": 10_001},
        {"seed": -1},
        {"steps": 0},
        {"steps": 1001},
        {"model": "../other"},
        {"model": "/etc"},
        {"model": ""},
        {"batch_size": 4},
    ],
    ids=str,
)
def test_limits(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerationParams(**changes)


def test_every_field_is_described() -> None:
    assert all(field.description for field in GenerationParams.model_fields.values())


# ---- the whole way: one process trains, another one makes images with what it made

TRAINING = {
    "dataset": "examples/digits/images",
    "image_size": 8,
    "channels": 8,
    "steps": 2,
    "batch_size": 8,
    "device": "cpu",
}


@on_every_store
async def test_what_one_process_trained_another_one_uses(crowd: Any) -> None:
    trainer, painter = crowd.worker(), crowd.worker()
    training = {"kind": "train_diffusion", "process_id": "t1", "params": TRAINING}
    trained = await trainer("start", **training)
    assert trained["status"] == "completed", trained
    rows = []
    for process_id, source in (("g1", "process:t1"), ("g2", "process:t1/model.safetensors")):
        reply = await painter(
            "start",
            kind="generate_images",
            process_id=process_id,
            inputs={"model": source},
            params={"count": 3, "steps": 2, "device": "cpu"},
        )
        assert reply["status"] == "completed", reply
        rows.append({file["path"]: file["sha256"] for file in reply["files"]})
    assert sorted(rows[0]) == [
        "contact_sheet.png",
        "images/00000.png",
        "images/00001.png",
        "images/00002.png",
        "seeds.json",
    ]
    assert rows[0] == rows[1]
