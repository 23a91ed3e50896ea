"""Pictures for people: grids of images, and the curve of a training's loss. Child only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID_SIDE = 640  # pixels, about: grids of small images are enlarged, so that one can see them
GAP = 2  # pixels around each tile
GAP_GRAY = 60
CURVE_POINTS = 2000

Pixels = NDArray[np.uint8]


def save_grid(images: Pixels, path: Path) -> None:
    """Write `images` (n, size, size, 1 or 3) to one PNG, row by row, as many across as down.

    They are enlarged smoothly: blocks of 8 x 8 pixels are hard to read as what they show.
    """
    across = math.ceil(len(images) ** 0.5)
    down = math.ceil(len(images) / across)
    tiles = np.stack([_enlarged(image, GRID_SIDE // across) for image in images])
    tiles = np.pad(tiles, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=GAP_GRAY)
    size, colors = tiles.shape[2:]
    empty = np.full((across * down - len(images), size, size, colors), GAP_GRAY, np.uint8)
    rows = np.concatenate([tiles, empty]).reshape(down, across, size, size, colors).swapaxes(1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_picture(rows.reshape(down * size, across * size, colors)).save(path)


def _enlarged(image: Pixels, size: int) -> Pixels:
    """`image` (h, w, 1 or 3) by the largest whole factor that keeps it within `size` pixels."""
    picture = to_picture(image)
    side = picture.width * max(1, size // picture.width)
    resized = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(side, side, -1)


def to_picture(pixels: Pixels) -> Image.Image:
    """`pixels` (h, w, 1 or 3) for Pillow."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_loss_plot(losses: NDArray[np.float32], path: Path) -> None:
    """Plot `losses` (one per step) as measured, and their running mean, to a PNG."""
    from matplotlib.figure import Figure  # seconds that other kinds with pictures need not wait

    steps = np.arange(1, len(losses) + 1)
    window = max(1, len(losses) // 25)
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    thin = max(1, len(losses) // CURVE_POINTS)  # a million points would only slow the drawing
    # Figure and not pyplot: no global state, no window system, the Agg canvas
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps[::thin], losses[::thin], color="tab:blue", alpha=0.25, label="each step")
    label = f"mean of {window} steps"
    axes.plot(steps[window - 1 :: thin], smooth[::thin], color="tab:blue", lw=2, label=label)
    axes.set(xlabel="step", ylabel="loss (velocity, mean square)", yscale="log")
    axes.set_title("Training loss")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
