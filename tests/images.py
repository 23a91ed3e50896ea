"""Made-up images for the tests of what trains on images, and where a job finds them."""

from __future__ import annotations

import io
import random
import zipfile

from PIL import Image

from child.context import JobContext


def png(seed: int = 0, *, size: tuple[int, int] = (10, 12), mode: str = "RGB") -> bytes:
    """An image of two colors, its halves: something to learn."""
    colors = random.Random(seed)  # noqa: S311 - no secret
    image = Image.new(mode, size)
    for corner in ((0, 0), (size[0] // 2, 0)):
        pixel = tuple(colors.randrange(256) for _ in image.getbands())
        image.paste(pixel if len(pixel) > 1 else pixel[0], (*corner, *size))
    return encoded(image, "PNG")


def encoded(image: Image.Image, format_name: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name)
    return stream.getvalue()


def give(context: JobContext, files: dict[str, bytes]) -> None:
    """Put files where the worker puts a process's inputs."""
    for name, content in files.items():
        path = context.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
