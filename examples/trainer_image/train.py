"""A trainer that knows nothing of any worker: it fits a line by gradient descent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import trange

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

slope = 0.0
for _ in trange(arguments.steps):
    slope += 0.1 * (2.0 - slope)
(arguments.out / "model.json").write_text(json.dumps({"slope": slope}))
