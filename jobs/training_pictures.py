"""The pictures a training leaves behind: grids of samples and the curve of the loss. Child only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

GAP = 1  # pixels around each tile, before the grid is enlarged
GAP_GRAY = 60
GRID_SIDE = 640  # pixels; smaller grids are enlarged by a whole factor, so that one can see them
CURVE_POINTS = 2000


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """Write `images` (n, size, size, 1 or 3), n a square number, as one square PNG."""
    side = round(len(images) ** 0.5)
    tiles = np.pad(images, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=GAP_GRAY)
    size, colors = tiles.shape[2:]
    rows = tiles.reshape(side, side, size, size, colors).swapaxes(1, 2)
    pixels = rows.reshape(side * size, side * size, colors)
    picture = Image.fromarray(pixels[..., 0] if colors == 1 else pixels)
    factor = max(1, GRID_SIDE // picture.width)
    picture = picture.resize((factor * picture.width,) * 2, Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def save_loss_plot(losses: NDArray[np.float32], path: Path) -> None:
    """Plot `losses` (one per step) as measured, and their running mean, to a PNG."""
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
