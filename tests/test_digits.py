"""The images that ship with the worker, and the main job that trains on them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from child.context import JobContext
from jobs import JOBS
from jobs.diffusion.dataset import load_images
from jobs.diffusion.params import TrainingParams

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"
#: Of `np.rint(load_digits().images * 255 / 16).astype(np.uint8).tobytes()`, scikit-learn 1.9.1.
SHA256 = "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f"


def test_the_images_are_those_of_scikit_learn(tmp_path: Path) -> None:
    paths = sorted((DIGITS / "images").glob("*/*.png"), key=lambda path: path.name)
    assert [path.stem for path in paths] == [f"{index:04d}" for index in range(1797)]
    images = load_images(JobContext(tmp_path), "examples/digits/images", 8, "auto")
    assert images.ignored == 0
    # load_images sorts by label and number; scikit-learn's order is by number alone
    in_order = sorted(range(1797), key=lambda index: sorted(paths, key=str)[index].name)
    assert hashlib.sha256(images.pixels[in_order].tobytes()).hexdigest() == SHA256


def test_licence_and_source_are_noted() -> None:
    text = (DIGITS / "README.md").read_text()
    for fact in ("CC BY 4.0", "10.24432/C50P49", "Alpaydin", "Kaynak", "scripts/export_digits.py"):
        assert fact in text
    assert (DIGITS / "preview.png").is_file()


def test_the_main_job_trains_on_them() -> None:
    request = json.loads((ROOT / "test_input.json").read_text())["input"]
    assert request["action"] == "start"
    params = JOBS[request["kind"]].params.model_validate(request["params"])
    assert isinstance(params, TrainingParams)
    assert (ROOT / params.dataset).is_dir()
