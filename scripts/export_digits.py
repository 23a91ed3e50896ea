"""Export the handwritten digits that scikit-learn bundles into `examples/digits/`. Run once.

The result is in the repository, so nobody needs to run this again; it is kept so that anybody
can see where the images come from and check them. scikit-learn is no dependency of the worker:

    python -m venv /tmp/export && /tmp/export/bin/pip install scikit-learn pillow
    /tmp/export/bin/python scripts/export_digits.py

The same release of Pillow writes the same bytes again; any release writes the same pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "digits"
BRIGHTEST = 16  # the data set counts ink: 0 (paper) to 16 in each of 8 x 8 cells
PREVIEW = (12, 24)  # rows, columns
PREVIEW_SCALE = 4
PREVIEW_GAP = 1  # dark pixels between digits, before scaling


def to_pixels(ink: np.ndarray) -> np.ndarray:
    """Turn ink counts (..., 0 to 16) into grey levels (..., uint8, 0 black to 255 white)."""
    return np.rint(ink * (255 / BRIGHTEST)).astype(np.uint8)


def export(pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write `pixels` (n, 8, 8) as `images/{label}/{index}.png`; the index is scikit-learn's."""
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = FOLDER / "images" / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, optimize=True)


def preview(pixels: np.ndarray) -> Image.Image:
    """Lay the first digits of `pixels` (n, 8, 8) out in a grid large enough to look at."""
    rows, columns = PREVIEW
    framed = np.pad(pixels[: rows * columns], ((0, 0), (PREVIEW_GAP,) * 2, (PREVIEW_GAP,) * 2))
    height, width = framed.shape[1:]
    grid = framed.reshape(rows, columns, height, width).swapaxes(1, 2)
    image = Image.fromarray(grid.reshape(rows * height, columns * width))
    size = (image.width * PREVIEW_SCALE, image.height * PREVIEW_SCALE)
    return image.resize(size, Image.Resampling.NEAREST)


def main() -> None:
    """Load, convert, write."""
    digits = load_digits()
    pixels = to_pixels(digits.images)
    export(pixels, digits.target)
    preview(pixels).save(FOLDER / "preview.png", optimize=True)
    print(f"{len(pixels)} images written to {FOLDER}")


if __name__ == "__main__":
    main()
