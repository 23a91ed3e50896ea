"""A plain training script, as one has lying about: argparse, a tqdm bar, checkpoints, --resume.

It fits a line through noisy points by gradient descent and knows nothing of any worker.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm


def main() -> None:
    """Train, save every so often, write the model at the end."""
    arguments = parse()
    state = {"step": 0, "slope": 0.0, "offset": 0.0}
    if arguments.resume:
        state = json.loads(Path(arguments.resume).read_text())
        print(f"resuming from step {state['step']}")
    points = make_points(arguments.seed)
    told_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.append(True))
    arguments.out.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=arguments.steps, initial=state["step"], mininterval=0)
    while state["step"] < arguments.steps:
        loss = take_step(state, points, arguments.lr)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update()
        time.sleep(arguments.seconds_per_step)
        if told_to_stop or state["step"] % arguments.save_every == 0:
            save(state, arguments.checkpoints / f"step-{state['step']:06d}.json")
        if told_to_stop:
            sys.exit(0)
    save(state | {"loss": loss, "note": arguments.note}, arguments.out / "model.json")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="")
    parser.add_argument("--seconds-per-step", type=float, default=0.0)
    parser.add_argument("--resume")
    return parser.parse_args()


def make_points(seed: int) -> list[tuple[float, float]]:
    """Points near the line y = 3x - 1."""
    random_numbers = random.Random(seed)  # noqa: S311 - no secret is made of it
    xs = [random_numbers.uniform(-1, 1) for _ in range(200)]
    return [(x, 3 * x - 1 + random_numbers.gauss(0, 0.05)) for x in xs]


def take_step(state: dict[str, float], points: list[tuple[float, float]], lr: float) -> float:
    """One step down the gradient; the mean squared error before it."""
    errors = [(x, state["slope"] * x + state["offset"] - y) for x, y in points]
    state["slope"] -= lr * sum(2 * error * x for x, error in errors) / len(points)
    state["offset"] -= lr * sum(2 * error for _, error in errors) / len(points)
    state["step"] += 1
    return sum(error * error for _, error in errors) / len(points)


def save(state: dict[str, object], path: Path) -> None:
    """All of it or nothing: written aside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(state))
    os.replace(aside, path)  # noqa: PTH105 - atomic


if __name__ == "__main__":
    main()
