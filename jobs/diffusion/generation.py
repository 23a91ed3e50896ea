"""Make images with a trained model. Child only; read from top to bottom.

Every image has a seed of its own, made of the process's seed and the image's number, and starts
from noise that only this seed decides. What is computed from it must not depend on its company
either. A CPU was measured to round differently in batches of 1 to 3 images than in larger ones, so
all batches of a model have one size; places that nobody needs are filled and thrown away.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import JsonValue

from child.context import JobContext, JobFailed, JobStopped
from child.names import on_disk
from jobs.diffusion.device import choose_device
from jobs.diffusion.model_file import MODEL, Description, load_network
from jobs.diffusion.params import GenerationParams
from jobs.diffusion.pictures import Pixels, save_grid, to_picture
from jobs.diffusion.sampler import follow, to_pixels
from jobs.diffusion.unet import UNet
from jobs.input_path import contents_of, is_there

#: How many images are made together, at most. Larger batches make a CPU no faster.
MOST_TOGETHER: Final = {"cpu": 8, "cuda": 64}
#: Of a batch, in its widest layer: what a small GPU has memory for.
NUMBERS_TOGETHER: Final = 1 << 25
#: Of the images, on the contact sheet.
SHEET_IMAGES: Final = 100

SHEET, SEEDS = "contact_sheet.png", "seeds.json"
#: In a checkpoint, beside the images' files.
STATE: Final = "state.json"


def make_images(context: JobContext, params: GenerationParams) -> dict[str, JsonValue]:
    """Make `params.count` images; leave them, a contact sheet and seeds.json in the outputs.

    Raises JobFailed: whatever `find_model`, `load_model` and `Gallery.restore` raise,
    device_missing. Raises JobStopped, after a checkpoint, when the context says so.
    """
    device = choose_device(context, params.device)
    _be_repeatable(device)
    kept: Model | None = context.kept
    model = kept or load_model(find_model(context.inputs, params.model), torch.device("cpu"))
    model = on_device(model, device)
    gallery = Gallery(context, params, model)
    if context.resume_from is not None:
        gallery.restore(context.resume_from)
    before = len(gallery.rows)
    size = model.description.image_size
    print(f"{before} of {params.count} images of {size} x {size} are there; more on {device.type}")
    report = Report(context, params, gallery)
    while (done := len(gallery.rows)) < params.count:
        numbers = range(done, min(done + model.batch_size, params.count))
        seeds = [seed_of(params.seed, number) for number in numbers]
        gallery.add(seeds, generate(model, seeds, params.steps, report.step_done))
        if len(gallery.rows) < params.count:
            gallery.save_if_due()
    gallery.finish()
    print(f"{params.count} images are made")
    return {
        "images": params.count,
        "made_by_this_attempt": params.count - before,
        "image_size": model.description.image_size,
        "colors": model.description.colors,
        "seconds": round(time.monotonic() - report.began, 1),
        "device": device.type,
        "contact_sheet": SHEET,
        "seeds": SEEDS,
    }


def _be_repeatable(device: torch.device) -> None:
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.backends.cudnn.deterministic = True  # of several ways to compute, not the fastest today


# ---- the model


class Model(NamedTuple):
    """A trained network in the memory of a device, ready to be asked any number of times."""

    network: UNet
    description: Description
    device: torch.device
    #: Of the file.
    sha256: str
    #: How many images to make together: always as many.
    batch_size: int


def find_model(inputs: Path, name: str) -> Path:
    """The file of the model that is called `name`: itself, or in a folder. Raises model_missing."""
    place = inputs / on_disk(name)
    for path in (place / MODEL, place):
        try:
            if is_there(inputs, path) and path.is_file():
                return path
        except ValueError as error:
            raise JobFailed("model_missing", f"The model {error}.") from error
    raise JobFailed(
        "model_missing",
        f"There is no model {name!r}, nor {MODEL!r} in a folder of that name, among the inputs, "
        f"which are: {contents_of(inputs)}.",
    )


def load_model(path: Path, device: torch.device) -> Model:
    """What `generate` needs. Raises JobFailed: model_broken, model_unknown."""
    network, description = load_network(path, device)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return on_device(Model(network, description, device, digest, 1), device)


def on_device(model: Model, device: torch.device) -> Model:
    """`model` in the memory of `device`, with the batches that are made there."""
    numbers = model.description.image_size**2 * model.description.channels
    batch_size = max(1, min(MOST_TOGETHER[device.type], NUMBERS_TOGETHER // numbers))
    return model._replace(network=model.network.to(device), device=device, batch_size=batch_size)


# ---- generating


def seed_of(seed: int, number: int) -> int:
    """The seed of one image: 53 bits, which every reader of JSON can hold exactly."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def generate(
    model: Model, seeds: Sequence[int], steps: int, on_step: Callable[[], None] = lambda: None
) -> Pixels:
    """One image per seed, at most `model.batch_size`: (n, size, size, 1 or 3), 0..255.

    `on_step` is called after each step. Raises JobFailed: model_broken, if no image comes out.
    """
    shape = (model.description.colors, model.description.image_size, model.description.image_size)
    noise = torch.zeros(model.batch_size, *shape)
    for place, seed in zip(noise[: len(seeds)], seeds, strict=True):
        # on the CPU, so that it is the same on every device
        place.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    images = follow(model.network, noise.to(model.device), steps, on_step)[: len(seeds)]
    if not bool(images.isfinite().all()):
        raise JobFailed("model_broken", "The model's weights lead to no image, but to no numbers.")
    pixels: Pixels = to_pixels(images).numpy()
    return pixels


class Report:
    """Progress: how many of all steps of all batches are done, and how fast it goes."""

    def __init__(self, context: JobContext, params: GenerationParams, gallery: Gallery) -> None:
        self.began = time.monotonic()
        self._context = context
        self._gallery = gallery
        self._steps = params.steps
        self._missing = params.count - len(gallery.rows)
        batch_size = gallery.model.batch_size
        self._before = math.ceil(len(gallery.rows) / batch_size) * params.steps
        self._total = self._before + math.ceil(self._missing / batch_size) * params.steps
        self._taken = 0  # by this attempt

    def step_done(self) -> None:
        """Tell of it. Raises JobStopped, after a checkpoint, when the context says so."""
        self._taken += 1
        images = self._taken / self._steps * self._gallery.model.batch_size
        speed = min(images, self._missing) / (time.monotonic() - self.began)
        self._context.progress(
            self._before + self._taken,
            self._total,
            "generating",
            images=len(self._gallery.rows),
            images_per_second=speed,
        )
        if self._context.should_stop():
            self._gallery.save()
            raise JobStopped


# ---- what is made


class Gallery:
    """The images so far: their files in the outputs, and what seeds.json says of each."""

    def __init__(self, context: JobContext, params: GenerationParams, model: Model) -> None:
        self.model = model
        #: One per finished image, in order.
        self.rows: list[dict[str, JsonValue]] = []
        self._context = context
        self._every = params.checkpoint_every
        self._saved = 0
        self._first: list[Pixels] = []  # for the contact sheet
        #: What all images have in common, and what must not change between attempts.
        self._common: dict[str, JsonValue] = {
            "model_sha256": model.sha256,
            "seed": params.seed,
            "steps": params.steps,
        }
        (context.outputs / "images").mkdir(exist_ok=True)

    def add(self, seeds: Sequence[int], images: Pixels) -> None:
        """Write the next images and offer them."""
        for seed, pixels in zip(seeds, images, strict=True):
            number = len(self.rows)
            path = self._context.outputs / image_path(number)
            to_picture(pixels).save(path)
            self._context.artifact(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.rows.append(
                {"path": image_path(number), "index": number, "seed": seed, "sha256": digest}
            )
            if number < SHEET_IMAGES:
                self._first.append(pixels)

    def finish(self) -> None:
        """Write and offer what there is only at the end."""
        outputs = self._context.outputs
        save_grid(np.stack(self._first), outputs / SHEET)
        table = self._common | {"images": self.rows}
        (outputs / SEEDS).write_text(json.dumps(table, indent=2) + "\n")
        for name in (SHEET, SEEDS):
            self._context.artifact(outputs / name)

    def save_if_due(self) -> None:
        """Save, unless little is new: each checkpoint carries all images, and has to travel."""
        if len(self.rows) - self._saved >= max(self._every, len(self.rows) // 8):
            self.save()

    def save(self) -> None:
        """Hand over the images so far as one file; nothing, if there are none."""
        if len(self.rows) == self._saved:
            return
        path = self._context.checkpoints / f"images-{len(self.rows):05d}.zip"
        state = {
            "common": self._common,
            "threads": torch.get_num_threads(),
            "rows": self.rows,
        }
        with zipfile.ZipFile(path, "w") as file:  # stored: PNGs are packed already
            file.writestr(STATE, json.dumps(state))
            for row in self.rows:
                file.write(self._context.outputs / str(row["path"]), str(row["path"]))
        self._context.checkpoint(path)
        self._saved = len(self.rows)
        print(f"{self._saved} images are made and saved in a checkpoint")

    def restore(self, path: Path) -> None:
        """Go on where `path` was saved, in outputs that look as if nothing had happened.

        Raises JobFailed: checkpoint_broken; checkpoint_mismatch if it is not of this process.
        """
        try:
            with zipfile.ZipFile(path) as file:
                state = json.loads(file.read(STATE))
                if state["common"] == self._common:
                    self._restore(state, file)
        except Exception as error:
            raise JobFailed("checkpoint_broken", f"It cannot be read: {error}") from error
        if state["common"] != self._common:
            raise JobFailed("checkpoint_mismatch", "Made with another model, seed or steps.")
        self._saved = len(self.rows)

    def _restore(self, state: dict[str, Any], file: zipfile.ZipFile) -> None:
        # how a sum is split among threads decides how it is rounded
        torch.set_num_threads(state["threads"])
        seeds = [row["seed"] for row in state["rows"]]
        for number, seed in enumerate(seeds):
            with Image.open(BytesIO(file.read(image_path(number))), formats=("PNG",)) as image:
                size = self.model.description.image_size
                pixels = np.asarray(image).reshape(1, size, size, -1)
            self.add([seed], pixels)
        if self.rows != state["rows"]:
            raise ValueError("its images are not those that it lists")


def image_path(number: int) -> str:
    """Where in the outputs an image lies."""
    return f"images/{number:05d}.png"
