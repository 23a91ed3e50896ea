"""A trainer's double, run as `choosing_trainer.py OUTPUTS [RESUME]`.

It saves three files whose names are not in the order of their steps, and then hangs. Resumed, it
writes the file that each way to choose the newest leads to, as trainers choose it, and ends.
"""

import json
import sys
import time
from pathlib import Path

NAMES = ("z-500.bin", "m-1000.bin", "a-1500.bin")
WAYS = {
    "ctime": lambda path: path.stat().st_ctime_ns,
    "mtime": lambda path: path.stat().st_mtime_ns,
    "number": lambda path: int(path.stem.partition("-")[2]),
}


def save(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(name)
        time.sleep(0.05)  # as far apart as steps are at least
    time.sleep(3600)


def choose(folder: Path, outputs: Path) -> None:
    files = list(folder.iterdir())
    chosen = {way: max(files, key=key).name for way, key in WAYS.items()}
    times = {path.name: path.stat().st_mtime_ns for path in files}
    (outputs / "chosen.json").write_text(json.dumps({"chosen": chosen, "times": times}))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        choose(Path(sys.argv[2]), Path(sys.argv[1]))
    else:
        save(Path("out/lora"))
