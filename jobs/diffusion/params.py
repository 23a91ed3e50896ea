"""The params of both kinds. The worker itself imports this module, so torch stays outside."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from jobs.input_path import InputPath

#: Every checkpoint carries the sample grids made so far, so their number is limited.
MAX_SAMPLE_GRIDS = 200
#: From noise to image.
SAMPLER_STEPS = 50
#: Less than this free, and not even the smallest net fits beside a CUDA context.
SMALLEST_GPU_BYTES = 1 << 30


class TrainingParams(BaseModel, frozen=True, extra="forbid", title="Params"):
    """What a caller may ask of `train_diffusion`."""

    dataset: Annotated[
        InputPath,
        Field(
            description="A folder or a zip file of PNG, JPEG or WebP images, sub-folders included: "
            "a path among the process's inputs, or else one that ships with the worker, such as "
            "examples/digits/images.",
        ),
    ]
    on_broken: Annotated[
        Literal["fail", "skip"],
        Field(
            description="What to do about an image that is broken or too large: fail before the "
            "first step, or go on without it; the result lists what was skipped."
        ),
    ] = "fail"
    image_size: Annotated[
        int,
        Field(
            ge=8,
            le=256,
            description="Width and height of the generated images, in pixels. Images of the "
            "dataset are cropped to their central square and resized to it.",
        ),
    ] = 32
    color: Annotated[
        Literal["auto", "gray", "rgb"],
        Field(description="What to generate; auto: gray if no image of the dataset has colors."),
    ] = "auto"
    channels: Annotated[
        int,
        Field(
            ge=8,
            le=256,
            multiple_of=8,
            description="Width of the network at full image size. Twice the channels make about "
            "four times the parameters and the work.",
        ),
    ] = 32
    steps: Annotated[
        int, Field(ge=1, le=1_000_000, description="How many batches to learn from.")
    ] = 1000
    batch_size: Annotated[
        int, Field(ge=1, le=1024, description="How many images each step learns from.")
    ] = 128
    learning_rate: Annotated[
        float,
        Field(
            gt=0,
            le=0.1,
            description="The highest step size of AdamW; it warms up to it and then decays to 0 "
            "along a cosine.",
        ),
    ] = 0.002
    seed: Annotated[
        int,
        Field(ge=0, lt=1 << 31, description="The same seed on the same CPU: the same model."),
    ] = 0
    sample_every: Annotated[
        int,
        Field(ge=1, description="Draw a grid of samples every so many steps, and at the end."),
    ] = 250
    checkpoint_every: Annotated[
        int, Field(ge=1, description="Hand over a checkpoint every so many steps.")
    ] = 250
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="Where to train; auto: on the GPU if the worker has one."),
    ] = "auto"

    @model_validator(mode="after")
    def _few_enough_grids(self) -> Self:
        if self.steps // self.sample_every > MAX_SAMPLE_GRIDS:
            raise ValueError(
                f"sample_every: so few steps would make more than {MAX_SAMPLE_GRIDS} sample grids"
            )
        return self


class GenerationParams(BaseModel, frozen=True, extra="forbid", title="Params"):
    """What a caller may ask of `generate_images`."""

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
