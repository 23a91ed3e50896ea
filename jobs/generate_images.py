"""The kind `generate_images`: new images from a model that `train_diffusion` has made.

This module holds what a caller may ask for. The worker's own process imports it, so torch stays
outside: the generating itself is in `jobs.image_generation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue

from jobs.input_path import InputPath
from jobs.train_diffusion import SAMPLER_STEPS

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.context import JobContext


class Params(BaseModel, frozen=True, extra="forbid"):
    """What a caller may ask of it."""

    model: Annotated[
        InputPath,
        Field(
            description="The model: a path among the process's inputs, to a model.safetensors of "
            "train_diffusion or to a folder with one in it.",
        ),
    ] = "model"
    count: Annotated[int, Field(ge=1, le=10_000, description="How many images to make.")] = 16
    seed: Annotated[
        int,
        Field(
            ge=0,
            lt=1 << 31,
            description="The same seed, model and steps on the same device: the same images. "
            "Image number 7 is the same whatever the count is.",
        ),
    ] = 0
    steps: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="How many steps lead from noise to an image. Fewer are faster and coarser; "
            "the samples of a training have this default.",
        ),
    ] = SAMPLER_STEPS
    checkpoint_every: Annotated[
        int,
        Field(
            ge=1,
            description="Hand over a checkpoint when so many images are new since the last one, "
            "and no less than an eighth of all.",
        ),
    ] = 100
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="Where to compute; auto: on the GPU if the worker has one."),
    ] = "auto"


def kept_input(params: Params) -> str:
    """The path, among the inputs, that the model is loaded from."""
    return params.model


def load(inputs: Path, params: Params) -> Any:
    """The model, in host memory. Raises JobFailed for a bad one."""
    import torch

    from jobs.image_generation import find_model, load_model

    return load_model(find_model(inputs, params.model), torch.device("cpu"))


def run(context: JobContext, params: Params) -> JsonValue:
    """Make the images. Raises JobFailed before the first one for a bad model."""
    from jobs.image_generation import make_images

    return make_images(context, params)
