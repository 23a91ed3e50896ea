"""What is mounted where RunPod mounts network volumes.

RunPod mounts the models that it caches for an endpoint under the same path. Records that were
written there would belong to one host's cache.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

#: Where RunPod mounts a network volume.
PATH = Path("/runpod-volume")
#: The folder there that holds RunPod's cached models.
MODEL_CACHE = "huggingface-cache"


class Mount(StrEnum):
    """The kinds of mount; only a volume serves as a store."""

    NONE = "none"
    VOLUME = "network volume"
    CACHED_MODELS = "cached models"
    NOT_WRITABLE = "not writable"


def mounted() -> Mount:
    """Which of them it is. Blocking."""
    if not PATH.is_mount():
        return Mount.NONE
    try:
        if os.listdir(PATH) == [MODEL_CACHE]:  # noqa: PTH208 - the names alone
            return Mount.CACHED_MODELS
    except PermissionError:
        return Mount.NOT_WRITABLE
    return Mount.VOLUME if os.access(PATH, os.W_OK) else Mount.NOT_WRITABLE


def is_there() -> bool:
    """Whether a network volume is mounted that this worker can write to."""
    return mounted() is Mount.VOLUME
