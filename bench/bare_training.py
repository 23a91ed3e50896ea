"""The loop of train_diffusion and nothing around it: no worker, no progress, no files.

python bench/bare_training.py PARAMS     (JSON; prints the number of each step as it is done)
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from jobs.diffusion.dataset import EXAMPLES
from jobs.diffusion.params import TrainingParams
from jobs.diffusion.training import Training


def main() -> None:
    """Train until there are no more steps."""
    params = TrainingParams.model_validate_json(sys.argv[1])
    size = (params.image_size, params.image_size)
    images = sorted((EXAMPLES.parent / params.dataset).rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("L").resize(size)) for path in images])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.use_deterministic_algorithms(device.type == "cpu")  # as the kind does: it costs time
    training = Training(params, pixels[..., None], device)
    while training.step < params.steps:
        training.take_step()
        print(training.step, flush=True)


if __name__ == "__main__":
    main()
