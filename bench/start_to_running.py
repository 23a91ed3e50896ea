"""How long a start takes until its job runs: forked from the template, against a plain spawn.

    python -m bench.start_to_running [--rounds 20]

Both ways alternate in one run, on the embedded store, so that what disturbs one disturbs the other.
Measured is what a caller sees: from the start's arrival to the first view that says `running`, and
to the job's first progress. torch is imported by the job itself (`import torch`), as a kind that
computes does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import trange

from jobs.forks import Template
from meter import Meter
from rp_handler import Handler
from settings import Settings
from storage import open_store

#: What a child of a kind that computes imports, and nothing else: the price of a plain spawn.
IMPORTS_TORCH = Path(__file__).with_name("import_torch_job.py")


class Seen(NamedTuple):
    """Seconds from a start's arrival."""

    running: float
    first_progress: float


async def one_start(handler: Handler, name: str) -> Seen:
    """Start a process and see it to its end."""
    began = time.perf_counter()
    start = {"action": "start", "kind": "import_torch", "process_id": name}
    task = asyncio.create_task(handler({"id": name, "input": start}))
    running = first = 0.0
    while not task.done():
        run = handler.manager.lookup.held(name)
        record = run.lease.record if run else None
        if record and record.status == "running" and not running:
            running = time.perf_counter() - began
        if record and record.progress and not first:
            first = time.perf_counter() - began
        await asyncio.sleep(0.0005)
    assert (await task)["status"] == "completed", await task
    return Seen(running, first)


async def measure(rounds: int, folder: Path) -> dict[str, list[Seen]]:
    """Both ways in turn; the first round of each warms up and does not count."""
    from bench.import_torch_job import register
    from jobs import runner

    register()
    runner.ENTRY = (str(IMPORTS_TORCH),)
    settings = Settings(data_dir=folder / "store", scratch_dir=folder / "scratch", template=False)
    handler = Handler(open_store(settings, Meter()), settings, way_in="api")
    handler._set_up = True  # nothing in the background: it would be measured, too
    template = Template((str(IMPORTS_TORCH), "--template"))
    template.start()
    await template.ready.wait()
    seen: dict[str, list[Seen]] = {"forked": [], "spawned": []}
    for number in trange(rounds + 1, desc="starts", file=sys.stderr):
        for way, its in (("forked", template), ("spawned", None)):
            handler.manager.worker.kept._plain = its
            result = await one_start(handler, f"{way}-{number}")
            if number:
                seen[way].append(result)
    template.close()
    return seen


def told(seen: dict[str, list[Seen]]) -> dict[str, object]:
    """Medians in milliseconds with quartiles, and how many times faster a fork is."""
    figures: dict[str, object] = {}
    for what in Seen._fields:
        medians = {}
        for way, all_of_them in seen.items():
            times = [1000 * getattr(each, what) for each in all_of_them]
            low, middle, high = statistics.quantiles(times, n=4)
            medians[way] = middle
            figures[f"{what}_{way}_ms"] = [round(low, 1), round(middle, 1), round(high, 1)]
        figures[f"{what}_ratio"] = round(medians["spawned"] / medians["forked"], 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        figures = told(asyncio.run(measure(rounds, Path(folder))))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
