"""Where a job computes. Child only: torch at the top."""

from __future__ import annotations

import torch

from child.context import JobContext, JobFailed


def choose_device(context: JobContext, chosen: str) -> torch.device:
    """The device to compute on: `chosen` is `auto`, `cpu` or `cuda`.

    Raises JobFailed device_missing where there is no GPU for `cuda`.
    """
    offered = context.device()
    if chosen == "cuda" and offered != "cuda":
        raise JobFailed("device_missing", "device is cuda, but this worker has no usable GPU.")
    return torch.device(offered if chosen == "auto" else chosen)
