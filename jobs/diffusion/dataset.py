"""Find, check and decode the images of a dataset. Child only.

A dataset comes from strangers. So every image is decoded before anything is done with it, what
could harm the worker is refused, and every refusal names the file.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from child.context import JobContext, JobFailed, JobStopped
from child.names import on_disk
from child.packed import (
    MAX_INFLATION,
    check_methods,
    promises_too_much,
    why_unsafe_in_zip,
    zip_name,
)
from jobs.diffusion.descriptions import without_descriptions
from jobs.diffusion.pictures import Pixels
from jobs.input_path import contents_of, is_there

#: Anything else is counted and otherwise ignored: a README, labels, thumbnails of a file manager.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
#: Pillow knows dozens of formats, some with a poor safety record; it gets to try only these.
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000  # of one image, before it is resized
MAX_DATASET_BYTES = 4 << 30  # decoded, as it stays in memory: 3 bytes a pixel

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Images(NamedTuple):
    """A dataset in memory."""

    #: (n, image_size, image_size, 1 or 3), 0..255, in the order of the files' names.
    pixels: Pixels
    #: How many files were no images, by their suffix.
    ignored: int
    #: Names of the images that could not be used, with reasons.
    skipped: dict[str, str]


class ImageSource(Protocol):
    """A folder or a zip, whichever the dataset is."""

    #: Of all files in it, sorted, so that the order is the same on every machine.
    names: list[str]

    def read(self, name: str) -> bytes:
        """The content of one file."""


def load_images(
    context: JobContext, dataset: str, image_size: int, color: str, *, skip_broken: bool = False
) -> Images:
    """Decode all images of `dataset` to squares of `image_size` pixels.

    `color` is `gray`, `rgb`, or `auto`: grey if no image has colors. With `skip_broken` an image
    that is broken or too large is left out.

    Raises JobFailed: dataset_missing, dataset_empty, dataset_broken, dataset_unsafe,
    dataset_too_large, image_broken, image_too_large.
    """
    source = open_dataset(find_dataset(context.inputs, dataset))
    names = [name for name in source.names if _is_image(name)]
    ignored = len(source.names) - len(names)
    if not names:
        raise JobFailed(
            "dataset_empty",
            f"The dataset {dataset!r} has no PNG, JPEG or WebP images ({ignored} other files).",
        )
    _check_it_fits(len(names), image_size)
    mode = "L" if color == "gray" else "RGB"
    pixels = np.empty((len(names), image_size, image_size, 1 if mode == "L" else 3), np.uint8)
    colorful = False
    skipped: dict[str, str] = {}
    count = 0
    for name in _told(context, names):
        try:
            pixels[count] = _decode(source, name, mode, image_size)
        except JobFailed as error:
            if not skip_broken:
                raise
            skipped[name] = str(error)
        else:
            colorful = colorful or bool((pixels[count] != pixels[count, :, :, :1]).any())
            count += 1
    if not count:
        raise JobFailed("dataset_empty", f"All {len(names)} images of {dataset!r} were skipped.")
    kept = pixels[:count] if colorful or color != "auto" else pixels[:count, ..., :1].copy()
    return Images(kept, ignored, skipped)


def _told(context: JobContext, names: list[str]) -> Iterator[str]:
    """`names`, and how far they are. Raises JobStopped."""
    for index, name in enumerate(names):
        if index % 100 == 0:
            context.progress(0, message=f"reading images: {index} of {len(names)}")
            if context.should_stop():
                raise JobStopped
        yield name


def find_dataset(inputs: Path, dataset: str) -> Path:
    """Where `dataset` is: among the inputs, or else one that ships as `examples/...`.

    Raises JobFailed: dataset_missing, or dataset_unsafe when a link leads out of there.
    """
    roots = {inputs: inputs / on_disk(dataset)}
    if dataset.startswith(f"{EXAMPLES.name}/"):
        roots[EXAMPLES] = EXAMPLES.parent / dataset
    for root, path in roots.items():
        try:
            if is_there(root, path):
                return path
        except ValueError as error:
            raise JobFailed("dataset_unsafe", f"The dataset {error}.") from error
    sentence = (
        f"There is no dataset {dataset!r} among the inputs, which are: {contents_of(inputs)}."
    )
    raise JobFailed("dataset_missing", sentence)


def open_dataset(path: Path) -> ImageSource:
    """List what is in a folder or zip. Raises JobFailed: dataset_broken, dataset_unsafe."""
    if path.is_dir():
        return FolderOfImages(path)
    try:
        return ZipOfImages(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise JobFailed(
            "dataset_broken", f"The dataset {path.name!r} is no folder and no sound zip: {error}"
        ) from error


class FolderOfImages:
    """All files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.names: list[str] = []
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                self._check(Path(parent, name))
            self.names += [Path(parent, name).relative_to(folder).as_posix() for name in files]
        self.names.sort()

    def read(self, name: str) -> bytes:
        """The content of one file. Raises JobFailed: image_too_large."""
        path = self._folder / name
        _check_file_size(name, path.stat().st_size)
        return path.read_bytes()

    def _check(self, path: Path) -> None:
        # A link could lead to any file of the worker; a pipe would be waited for without end.
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise JobFailed(
                "dataset_unsafe",
                f"{path.relative_to(self._folder).as_posix()!r} is a link or a special file.",
            )


class ZipOfImages:
    """All files in a zip. It is never unpacked to disk, so its names can do no harm there.

    They are checked all the same: a zip with such names was made to harm somebody.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        members = [each for each in self._zip.infolist() if not zip_name(each).endswith("/")]
        for member in members:
            if why := why_unsafe_in_zip(member):
                raise JobFailed("dataset_unsafe", f"{member.filename!r} in the zip {why}.")
        check_methods(members)
        if promises_too_much(members, path.stat().st_size):
            raise JobFailed(
                "dataset_unsafe",
                f"{path.name!r} would unpack to more than {MAX_INFLATION} times its size.",
            )
        self._members = {zip_name(member): member for member in members}
        self.names = sorted(self._members)

    def read(self, name: str) -> bytes:
        """The content of one file. Raises JobFailed: image_too_large; and what zipfile raises."""
        member = self._members[name]
        _check_file_size(name, member.file_size)
        return self._zip.read(member)  # never more than the size that it declares


def _is_image(name: str) -> bool:
    """Whether to decode it. Hidden files and macOS's shadows of files are no images."""
    path = PurePosixPath(name)
    shadow = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not shadow


def _check_it_fits(count: int, image_size: int) -> None:
    fitting = MAX_DATASET_BYTES // (3 * image_size**2)
    if count > fitting:
        raise JobFailed(
            "dataset_too_large",
            f"{count} images; of {image_size} x {image_size} pixels {fitting} fit in memory.",
        )


def _check_file_size(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise JobFailed(
            "image_too_large", f"{name!r} has {size} bytes; at most {MAX_FILE_BYTES} are read."
        )


def _check_pixels(name: str, count: int) -> None:
    if count > MAX_PIXELS:
        raise JobFailed(
            "image_too_large", f"{name!r} has {count} pixels; at most {MAX_PIXELS} are decoded."
        )


def _decode(source: ImageSource, name: str, mode: str, size: int) -> Pixels:
    """One file as (size, size, 1 or 3). Raises JobFailed: image_broken, image_too_large."""
    try:
        data = without_descriptions(source.read(name))
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(name, image.width * image.height)
            square = _to_square(image, mode, size)
    except JobFailed:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, far above ours
        raise JobFailed("image_too_large", f"{name!r}: {error}") from error
    except UnidentifiedImageError as error:  # its own message names an object in memory
        raise JobFailed(
            "image_broken", f"{name!r} is no PNG, JPEG or WebP picture, or its beginning is damaged"
        ) from error
    except Exception as error:  # decoders raise almost anything on broken bytes
        raise JobFailed("image_broken", f"{name!r} cannot be read: {error}") from error
    return np.asarray(square).reshape(size, size, -1)


def _to_square(image: Image.Image, mode: str, size: int) -> Image.Image:
    """Upright, on white where it is transparent, in `mode`, the central square, resized."""
    with suppress(Exception):  # damaged EXIF is no orientation, and says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip the 16 bits, not scale them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BICUBIC)
