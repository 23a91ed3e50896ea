"""The kind `train_diffusion`: train an image generator from scratch on a folder or zip of images.

The worker itself imports this module, so torch stays outside: the training is in
`jobs.diffusion.training`, the images are in `jobs.diffusion.dataset`.
"""

from __future__ import annotations

from pydantic import JsonValue

from jobs import Job, JobContext
from jobs.diffusion.params import SMALLEST_GPU_BYTES, TrainingParams


def run(context: JobContext, params: TrainingParams) -> JsonValue:
    """Train, and return a summary. Raises JobFailed before the first step for bad data."""
    from jobs.diffusion.training import train

    return train(context, params)


KIND = Job(TrainingParams, run, gpu_bytes=SMALLEST_GPU_BYTES)
