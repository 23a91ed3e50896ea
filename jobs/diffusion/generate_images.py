"""The kind `generate_images`: new images from a model that `train_diffusion` has made.

The worker itself imports this module, so torch stays outside: the generating is in
`jobs.diffusion.generation`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import JsonValue

from jobs import Job, JobContext, Keep
from jobs.diffusion.params import SMALLEST_GPU_BYTES, GenerationParams


def kept_input(params: GenerationParams) -> str:
    """The path, among the inputs, that the model is loaded from."""
    return params.model


def load(inputs: Path, params: GenerationParams) -> Any:
    """The model, in host memory. Raises JobFailed for a bad one."""
    import torch

    from jobs.diffusion.generation import find_model, load_model

    return load_model(find_model(inputs, params.model), torch.device("cpu"))


def run(context: JobContext, params: GenerationParams) -> JsonValue:
    """Make the images. Raises JobFailed before the first one for a bad model."""
    from jobs.diffusion.generation import make_images

    return make_images(context, params)


KIND = Job(GenerationParams, run, keep=Keep(kept_input, load), gpu_bytes=SMALLEST_GPU_BYTES)
