"""Train an image generator from scratch with rectified flow. Child only; read from top to bottom.

The idea (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747): draw a straight
line from a picture of pure noise, at time 0, to an image of the dataset, at time 1. A network sees
a point on the line and its time, and learns the velocity, image minus noise. Where many lines
cross it learns their mean. To generate, start from new noise and follow the velocities to time 1.

An attempt may end at any step and another worker goes on. On a CPU both together end with the
same bytes as one undisturbed attempt would, so whatever changes from step to step is in
`Training`, and `Training` is what a checkpoint holds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional as F

from child.context import JobContext, JobFailed, JobStopped
from jobs.diffusion.dataset import Images, load_images
from jobs.diffusion.device import choose_device
from jobs.diffusion.model_file import MODEL, Description, save_network
from jobs.diffusion.params import SAMPLER_STEPS, TrainingParams
from jobs.diffusion.pictures import Pixels, save_grid, save_loss_plot
from jobs.diffusion.sampler import follow, to_pixels, velocity
from jobs.diffusion.unet import UNet

EMA_DECAY = 0.999
WARM_UP = 0.05  # of all steps
GRADIENT_LIMIT = 1.0  # its norm; rare large gradients would undo what many steps learned
REPORT_EVERY = 10  # steps; to look at a loss makes the CPU wait for the GPU
RECENT = 50  # steps that a shown loss is the mean of

PLOT_SECONDS = 10.0  # between two plots of the loss while it trains; one takes half a second

#: Skipped images in the result; the log names them all.
SKIPPED_SHOWN = 100
LOSS_PLOT, METRICS = "loss.png", "metrics.jsonl"


def train(context: JobContext, params: TrainingParams) -> dict[str, JsonValue]:
    """Train on `params.dataset`; leave model, config, samples, metrics and plot in the outputs.

    Raises JobFailed: whatever `load_images` and `load_checkpoint` raise, device_missing,
    training_diverged. Raises JobStopped, after a checkpoint, when the context says so.
    """
    device = choose_device(context, params.device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    dataset = _read_dataset(context, params)
    training = Training(params, dataset.pixels, device)
    if context.resume_from is not None:
        load_checkpoint(context, training, context.resume_from)
    print(begun(training))
    metrics = Metrics(context, training)
    while training.step < params.steps:
        if context.should_stop():
            save_checkpoint(context, training)
            raise JobStopped
        training.take_step()
        step = training.step
        if step % REPORT_EVERY == 0 or step in (1, params.steps):
            metrics.catch_up()
        context.progress(step, params.steps, "training", **metrics.newest)
        if step % params.sample_every == 0 or step == params.steps:
            draw_samples(context, training)
            print(so_far(training))
            if step < params.steps:
                metrics.offer()
        if step % params.checkpoint_every == 0:
            save_checkpoint(context, training)
            print(f"step {step}: checkpoint saved")
    metrics.offer()
    save_results(context, training)
    return summary(training) | {
        "ignored_files": dataset.ignored,
        "skipped_count": len(dataset.skipped),
        "skipped": dict(islice(dataset.skipped.items(), SKIPPED_SHOWN)),
    }


def _read_dataset(context: JobContext, params: TrainingParams) -> Images:
    """The images; those that are skipped are named in the log."""
    skip = params.on_broken == "skip"
    where, size, color = params.dataset, params.image_size, params.color
    images = load_images(context, where, size, color, skip_broken=skip)
    for reason in images.skipped.values():
        print(f"skipped: {reason}")
    return images


# ---- learning


class Training:
    """Everything that changes from step to step, and so everything that a checkpoint holds.

    `pixels` is the dataset: (n, size, size, 1 or 3) uint8. Random numbers come from generators
    that nothing else draws from, so that drawing samples does not change the course of things.
    """

    def __init__(self, params: TrainingParams, pixels: Pixels, device: torch.device) -> None:
        self.params = params
        self.device = device
        self.fingerprint = fingerprint(params, pixels)
        self.images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        self.unet = {
            "image_size": params.image_size,
            "colors": self.images.shape[1],
            "channels": params.channels,
        }
        torch.manual_seed(params.seed)  # for the first weights, and for nothing after them
        model = UNet(**self.unet).to(device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), fused=True)
        self.order = DataOrder(len(pixels), params.seed + 1)
        self.noise = torch.Generator(device).manual_seed(params.seed + 2)
        self.losses = torch.zeros(params.steps, device=device)  # of the steps done; 0 beyond
        self.step = 0
        self.began = time.monotonic()  # moved back by the time that earlier attempts took

    def take_step(self) -> None:
        """Learn from one batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.params)
        batch = self.images[self.order.take(self.params.batch_size)]
        loss = flow_loss(self.model, to_model(batch), self.noise)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's stubs lack it
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_LIMIT)
        self.optimizer.step()
        update_ema(self.ema, self.model, self.step)
        self.losses[self.step] = loss.detach()
        self.step += 1

    def state(self) -> dict[str, Any]:
        """All of it, as `torch.load` may read it back without running anybody's code."""
        return {
            "fingerprint": self.fingerprint,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "step": self.step,
            "seconds": time.monotonic() - self.began,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.state(),
            "noise": self.noise.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was saved from. Raises KeyError, RuntimeError if it is not whole."""
        # how a sum is split among threads decides how it is rounded
        torch.set_num_threads(state["threads"])
        self.step = state["step"]
        self.began = time.monotonic() - state["seconds"]
        self.losses.copy_(state["losses"])
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.restore(state["order"])
        if state["device"] == self.device.type:
            self.noise.set_state(state["noise"])
        else:  # a CPU cannot continue a GPU's stream of numbers; any fresh one serves
            self.noise.manual_seed(self.params.seed + 2 + self.step)


class DataOrder:
    """An endless stream of indices below `count`: all of them shuffled, then again."""

    def __init__(self, count: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.empty(0, dtype=torch.int64)
        self._count = count

    def take(self, count: int) -> Tensor:
        """The next `count` indices: (count,) int64."""
        while len(self._left) < count:
            again = torch.randperm(self._count, generator=self._generator)
            self._left = torch.cat([self._left, again])
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def state(self) -> dict[str, Tensor]:
        """What comes next."""
        # A slice is saved with all that it is a slice of; a clone is not.
        return {"left": self._left.clone(), "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on as `state` would have."""
        self._left = state["left"]
        self._generator.set_state(state["generator"])


def flow_loss(model: UNet, images: Tensor, noise: torch.Generator) -> Tensor:
    """Mean square error of the model's velocities at random points between noise and `images`.

    `images`: (n, colors, size, size) in -1..1. Times are logit-normal, which spends more steps on
    the middle of the way, where it is hard (Esser et al. 2024, arXiv:2403.03206, section 3.1).
    """
    device = images.device
    start = torch.randn(images.shape, generator=noise, device=device)
    times = torch.randn(len(images), generator=noise, device=device).sigmoid()
    points = start.lerp(images, times[:, None, None, None])
    return F.mse_loss(velocity(model, points, times), images - start)


def learning_rate(step: int, params: TrainingParams) -> float:
    """Linear warm-up, then a cosine down to 0 (Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    warm_up = max(1.0, WARM_UP * params.steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / params.steps))
    return params.learning_rate * min(1.0, (step + 1) / warm_up) * cosine


@torch.no_grad()
def update_ema(ema: UNet, model: UNet, step: int) -> None:
    """Move the averaged weights towards the newest; faster at first, when these are still poor."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    for average, newest in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(newest, 1 - decay)


def to_model(pixels: Tensor) -> Tensor:
    """Bytes 0..255 as the numbers -1..1 that the model works with."""
    return pixels.float() / 127.5 - 1


# ---- samples


def draw_samples(context: JobContext, training: Training) -> None:
    """Offer a grid of what the model generates now; from the same noise each time, to compare."""
    size, colors = training.params.image_size, training.images.shape[1]
    side = 8 if size <= 64 else 4
    generator = torch.Generator().manual_seed(training.params.seed + 3)
    noise = torch.randn(side * side, colors, size, size, generator=generator)
    path = context.outputs / sample_path(training.step)
    images = follow(training.ema, noise.to(training.device), SAMPLER_STEPS)
    save_grid(to_pixels(images).numpy(), path)
    context.artifact(path)


def sample_path(step: int) -> str:
    """Where in the outputs the grid of a step lies."""
    return f"samples/step-{step:06d}.png"


# ---- checkpoints


def fingerprint(params: TrainingParams, pixels: Pixels) -> dict[str, JsonValue]:
    """What must not change between attempts: the params that matter, and the images themselves."""
    return {
        **params.model_dump(exclude={"device", "dataset"}),
        "images": hashlib.sha256(pixels.data).hexdigest(),
    }


def save_checkpoint(context: JobContext, training: Training) -> None:
    """Hand over the training, and the samples so far: nobody could draw those again."""
    folder = context.checkpoints / f"step-{training.step:06d}"
    (folder / "samples").mkdir(parents=True)  # lost on its way to another worker while empty
    for path in sorted((context.outputs / "samples").glob("*.png")):
        shutil.copy(path, folder / "samples")
    torch.save(training.state(), folder / "training.pt")
    context.checkpoint(folder)


def load_checkpoint(context: JobContext, training: Training, folder: Path) -> None:
    """Go on where `folder` was saved, in outputs that look as if nothing had happened.

    Raises JobFailed: checkpoint_broken; checkpoint_mismatch if it is not of this training.
    """
    try:
        state = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        saved = state["fingerprint"]
        if saved == training.fingerprint:
            training.restore(state)
    except Exception as error:
        raise JobFailed("checkpoint_broken", f"The checkpoint cannot be read: {error}") from error
    if saved != training.fingerprint:
        changed = [name for name, value in training.fingerprint.items() if saved.get(name) != value]
        raise JobFailed("checkpoint_mismatch", f"Made with other {', '.join(changed)}.")
    for path in sorted((folder / "samples").glob("*.png")):
        copied = context.outputs / "samples" / path.name
        copied.parent.mkdir(exist_ok=True)
        shutil.copy(path, copied)
        context.artifact(copied)


# ---- results


class Metrics:
    """metrics.jsonl, one line per step. A resumed attempt writes it again from its beginning."""

    def __init__(self, context: JobContext, training: Training) -> None:
        #: The figures of the last report, to be shown as progress.
        self.newest: dict[str, float] = {}
        self._training = training
        self._context = context
        self._plotted_at = time.monotonic()
        # An offered file must not change while it is sent, so what grows lies outside the outputs.
        self._path = context.outputs.parent / METRICS
        self._path.write_text("")
        self._written = 0
        self.catch_up()

    def catch_up(self) -> None:
        """Write the steps done since the last call. Raises JobFailed: training_diverged."""
        training = self._training
        losses = training.losses[self._written : training.step].tolist()
        with self._path.open("a") as file:
            for step, loss in enumerate(losses, start=self._written + 1):
                if not math.isfinite(loss):
                    file.flush()
                    self._offer_table()
                    raise JobFailed(
                        "training_diverged",
                        f"The loss of step {step} is {loss}; a lower learning_rate may help.",
                    )
                rate = learning_rate(step - 1, training.params)
                print(json.dumps({"step": step, "loss": loss, "learning_rate": rate}), file=file)
        self._written = training.step
        if losses:
            self.newest = {"loss": recent_loss(training), "learning_rate": rate}

    def offer(self) -> None:
        """Offer what there is of the metrics, and now and then a plot."""
        self.catch_up()
        self._offer_table()
        if time.monotonic() - self._plotted_at >= PLOT_SECONDS:
            self._plotted_at = time.monotonic()
            plot = self._path.with_name(LOSS_PLOT)
            save_loss_plot(self._training.losses[: self._training.step].cpu().numpy(), plot)
            self._offer(plot, LOSS_PLOT)

    def _offer_table(self) -> None:
        partial = self._path.with_suffix(".part")
        shutil.copy(self._path, partial)
        self._offer(partial, METRICS)

    def _offer(self, written: Path, name: str) -> None:
        self._context.artifact(written.replace(self._context.outputs / name))


def recent_loss(training: Training) -> float:
    """The mean of the last losses; a single one says more about its batch than about the model."""
    return training.losses[max(0, training.step - RECENT) : training.step].mean().item()


def save_results(context: JobContext, training: Training) -> None:
    """Write and offer what is there only at the end; samples and metrics are offered already."""
    outputs = context.outputs
    save_network(training.ema, Description.model_validate(training.unet), outputs / MODEL)
    config = {
        "network": {"class": "jobs.diffusion.unet.UNet", "arguments": training.unet},
        "sampler": {"method": "euler", "steps": SAMPLER_STEPS, "noise_at": 0, "images_at": 1},
        "pixels": "(x + 1) * 127.5",
        "trained_with": training.params.model_dump(),
    }
    (outputs / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_loss_plot(training.losses.cpu().numpy(), outputs / LOSS_PLOT)
    for name in (MODEL, "config.json", LOSS_PLOT):
        context.artifact(outputs / name)


def begun(training: Training) -> str:
    """For the log: what is trained on what, and where it goes on."""
    count, colors, size, _ = training.images.shape
    weights = sum(weight.numel() for weight in training.model.parameters())
    at = f"; resumed at step {training.step}" if training.step else ""
    return (
        f"{count} images of {size} x {size}, {'gray' if colors == 1 else 'rgb'}; a network of "
        f"{weights:,} weights on {training.device.type}{at}"
    )


def so_far(training: Training) -> str:
    """For the log: `step 250 of 1000: loss 0.21, 14.2 steps/s`."""
    speed = training.step / (time.monotonic() - training.began)
    total = training.params.steps
    return f"step {training.step} of {total}: loss {recent_loss(training):.4g}, {speed:.3g} steps/s"


def summary(training: Training) -> dict[str, JsonValue]:
    """The job's result. Its paths are relative to the outputs."""
    return {
        "steps": training.step,
        "final_loss": recent_loss(training),
        "images": len(training.images),
        "image_size": training.params.image_size,
        "colors": training.images.shape[1],
        "parameters": sum(weight.numel() for weight in training.ema.parameters()),
        "seconds": round(time.monotonic() - training.began, 1),
        "device": training.device.type,
        "sample": sample_path(training.step),
        "loss_plot": LOSS_PLOT,
        "model": MODEL,
    }
