"""The images of a dataset: what is accepted, what they become, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from child.context import JobContext, JobFailed
from jobs.diffusion import dataset
from jobs.diffusion.dataset import load_images
from jobs.diffusion.params import TrainingParams
from jobs.diffusion.train_diffusion import run
from tests.images import encoded, give, png, zipped

IMAGES = {f"images/{number}.png": png(number) for number in range(7)}


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_formats(format_name: str, tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    picture = encoded(Image.new("RGB", (20, 10), "white"), format_name)
    give(context, {f"images/a.{format_name}": picture})
    pixels, *_ = load_images(context, "images", 8, "rgb")
    assert pixels.shape == (1, 8, 8, 3)
    assert pixels.min() >= 254


@pytest.mark.parametrize(
    ("mode", "color", "colors"),
    [("L", "auto", 1), ("RGB", "auto", 3), ("RGB", "gray", 1), ("L", "rgb", 3)],
)
def test_colors(mode: str, color: str, colors: int, tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    give(context, {"images/a.png": png(mode=mode)})
    assert load_images(context, "images", 8, color).pixels.shape == (1, 8, 8, colors)


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    give(context, {"images/a.png": encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG")})
    assert (load_images(context, "images", 8, "auto").pixels == 255).all()


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    give(context, {"images/a.png": encoded(grey, "PNG")})
    assert (load_images(context, "images", 8, "auto").pixels == 0x80).all()


def test_the_central_square_is_what_counts(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    wide = Image.new("L", (40, 8), "black")
    wide.paste("white", (16, 0, 24, 8))
    give(context, {"images/a.png": encoded(wide, "PNG")})
    assert (load_images(context, "images", 8, "auto").pixels == 255).all()


# ---- what is not the picture never refuses it


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A sound PNG with more chunks after its header."""
    plain = png()
    more = b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )
    return plain[:33] + more + plain[33:]


MUCH = zlib.compress(bytes(1_500_000))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"prompt\0\0" + MUCH),
        (b"iTXt", b"workflow\0\1\0\0\0" + MUCH),
        (b"iCCP", b"profile\0\0" + MUCH),
        (b"zTXt", b"damaged\0\0no stream"),
        (b"eXIf", b"MM\0*\0\0\xff\xff"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "a damaged text", "damaged EXIF"],
)
def test_large_and_damaged_descriptions_change_no_picture(
    chunk: tuple[bytes, bytes], tmp_path: Path
) -> None:
    context = JobContext(tmp_path)
    give(context, {"images/a.png": png_with(chunk), "images/b.png": png()})
    one, other = load_images(context, "images", 8, "auto").pixels
    assert (one == other).all()


def test_broken_images_can_be_skipped_and_are_listed(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    give(context, {"images/a.png": b"", "images/b.png": png(), "images/c.png": image_bomb(9_000)})
    images = load_images(context, "images", 8, "auto", skip_broken=True)
    assert len(images.pixels) == 1
    assert list(images.skipped) == ["a.png", "c.png"]
    assert "BytesIO" not in str(images.skipped)


def test_a_dataset_of_nothing_but_broken_images_is_empty(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    give(context, {"images/a.png": b""})
    with pytest.raises(JobFailed, match="were skipped") as failed:
        load_images(context, "images", 8, "auto", skip_broken=True)
    assert failed.value.code == "dataset_empty"


# ---- bad data: each fails before the first step, with a code, and names the file


def zip_with_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return stream.getvalue()


def image_bomb(side: int) -> bytes:
    """A tiny PNG whose header promises a picture of `side` x `side` pixels."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    plain = png(mode="L")
    return plain[:12] + header + zlib.crc32(header).to_bytes(4, "big") + plain[33:]


BAD_DATA: dict[str, tuple[str, dict[str, bytes], str, str]] = {
    "nothing there": ("images", {}, "dataset_missing", "'images'"),
    "no images": ("images", {"images/notes.txt": b"hello"}, "dataset_empty", "1 other files"),
    "not a zip": ("a.zip", {"a.zip": b"PK but no more"}, "dataset_broken", "'a.zip'"),
    "truncated": ("images", {"images/a.png": png()[:-30]}, "image_broken", "'a.png'"),
    "empty file": ("images", {"images/a.png": b""}, "image_broken", "'a.png'"),
    "not an image": ("images", {"images/b/a.jpg": b"<html>"}, "image_broken", "'b/a.jpg'"),
    "a GIF in disguise": (
        "images",
        {"images/a.png": encoded(Image.new("L", (8, 8)), "GIF")},
        "image_broken",
        "'a.png'",
    ),
    "broken in a zip": ("z", {"z": zipped({"a.png": png()[:-30]})}, "image_broken", "'a.png'"),
    "bomb": ("images", {"images/a.png": image_bomb(9_000)}, "image_too_large", "'a.png'"),
    "huge bomb": ("images", {"images/a.png": image_bomb(60_000)}, "image_too_large", "'a.png'"),
    "upwards in a zip": ("z", {"z": zipped({"../a.png": png()})}, "dataset_unsafe", "a.png"),
    "absolute in a zip": ("z", {"z": zipped({"/a.png": png()})}, "dataset_unsafe", "a.png"),
    "link in a zip": ("a.zip", {"a.zip": zip_with_link()}, "dataset_unsafe", "link.png"),
    "zip bomb": ("a.zip", {"a.zip": zipped({"a.png": bytes(70 << 20)})}, "dataset_unsafe", "a.zip"),
}


@pytest.mark.parametrize(("dataset", "files", "code", "named"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_fails_before_the_first_step(
    dataset: str, files: dict[str, bytes], code: str, named: str, tmp_path: Path
) -> None:
    context = JobContext(tmp_path)
    give(context, files)
    with pytest.raises(JobFailed) as failed:
        run(context, TrainingParams(dataset=dataset))
    assert failed.value.code == code
    assert named in str(failed.value)
    assert list(context.outputs.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    (tmp_path / "secret.png").write_bytes(png())
    give(context, IMAGES)
    (context.inputs / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(JobFailed, match=r"link\.png") as failed:
        load_images(context, "images", 9, "auto")
    assert failed.value.code == "dataset_unsafe"


def test_the_dataset_itself_may_be_no_link_out_of_the_inputs(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (context.inputs / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JobFailed) as failed:
        load_images(context, "images", 9, "auto")
    assert failed.value.code == "dataset_unsafe"


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    context = JobContext(tmp_path)
    give(context, IMAGES)
    os.mkfifo(context.inputs / "images" / "pipe.png")
    with pytest.raises(JobFailed, match=r"pipe\.png") as failed:
        load_images(context, "images", 9, "auto")
    assert failed.value.code == "dataset_unsafe"


def test_more_images_than_memory_is_known_before_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_DATASET_BYTES", 3 * 9 * 9 * 6)
    context = JobContext(tmp_path)
    give(context, IMAGES | {"images/broken.png": b"never looked at"})
    with pytest.raises(JobFailed) as failed:
        load_images(context, "images", 9, "auto")
    assert failed.value.code == "dataset_too_large"
