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
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import trange

from bench.figures import Figure, milliseconds
from bench.import_torch_job import register
from bench.report import Section, table
from child import forks, runner
from jobs import JOBS
from rp_handler import Handler
from stores.open import open_store
from worker.meter import Meter
from worker.settings import Settings

#: What a child of a kind that computes imports, and nothing else: the price of a plain spawn.
IMPORTS_TORCH = Path(__file__).with_name("import_torch_job.py")


class Seen(NamedTuple):
    """Seconds from a start's arrival; None for what was over before anybody looked."""

    running: float | None
    first_progress: float | None


async def one_start(handler: Handler, name: str) -> Seen:
    """Start a process and see it to its end."""
    began = time.perf_counter()
    start = {"action": "start", "kind": "import_torch", "process_id": name}
    task = asyncio.create_task(handler({"id": name, "input": start}))
    running = first = None
    while not task.done():
        run = handler.manager.runs.held(name)
        record = run.lease.record if run else None
        if record and record.status == "running" and running is None:
            running = time.perf_counter() - began
        if record and record.progress and first is None:
            first = time.perf_counter() - began
        await asyncio.sleep(0.0005)
    assert (await task)["status"] == "completed", await task
    return Seen(running, first)


async def measure(rounds: int, folder: Path, *, warm_up: int = 1) -> dict[str, list[Seen]]:
    """Both ways in turn, after `warm_up` rounds of each that do not count.

    Two workers take part, as they are in earnest: one with a template, one without.
    """
    seen: dict[str, list[Seen]] = {"forked": [], "spawned": []}
    with kind_that_imports_torch():
        handlers = {way: await worker(folder / way, template=way == "forked") for way in seen}
        for number in trange(warm_up + rounds, desc="starts", file=sys.stderr):
            for way, handler in list(handlers.items())[:: 1 if number % 2 else -1]:
                result = await one_start(handler, f"{way}-{number}")
                if number >= warm_up:
                    seen[way].append(result)
    for handler in handlers.values():
        if template := handler.manager.parts.kept.plain:
            template.close()
    return seen


@contextmanager
def kind_that_imports_torch() -> Iterator[None]:
    """Workers know it within, and so do their children, however they come to be."""
    before = runner.ENTRY, forks.ENTRY
    register()
    runner.ENTRY = (str(IMPORTS_TORCH),)
    forks.ENTRY = (str(IMPORTS_TORCH), "--template")
    try:
        yield
    finally:
        runner.ENTRY, forks.ENTRY = before
        del JOBS["import_torch"]


async def worker(folder: Path, *, template: bool) -> Handler:
    """One that is ready, with a store and a disk of its own."""
    settings = Settings(
        data_dir=folder / "store", scratch_dir=folder / "scratch", template=template
    )
    handler = Handler(open_store(settings, Meter()), settings, way_in="api")
    handler.set_up()
    if its := handler.manager.parts.kept.plain:
        await its.ready.wait()
    return handler


def figures_of(seen: dict[str, list[Seen]]) -> list[Figure]:
    """Medians of what was seen, and how many times faster a fork is."""
    figures = []
    for part in Seen._fields:
        name = "start to " + part.replace("_", " ")
        times = {
            way: [each for one in all_of_them if (each := getattr(one, part)) is not None]
            for way, all_of_them in seen.items()
        }
        figures += [
            milliseconds(f"{name}, {way}", taken, note=f"of {len(taken)} starts")
            for way, taken in times.items()
            if taken
        ]
        if all(map(len, times.values())):
            middles = {way: statistics.median(taken) for way, taken in times.items()}
            spread = middles["spawned"] / middles["forked"]
            figures.append(Figure(f"{name}, spawned to forked", spread, "ratio"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        figures = figures_of(asyncio.run(measure(rounds, Path(folder))))
    print(table([Section("start_to_running", "Start to running", 0.0, tuple(figures))]))


if __name__ == "__main__":
    main()
