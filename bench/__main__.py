"""Measure this worker beside an empty handler, other S3 clients and a bare training loop.

    make bench                              everything; prints a table, writes results and a chart
    make bench-quick                        the same with less of everything, in some minutes
    python -m bench dispatch cancels        only these sections

Writes `bench/results.json` and `bench/results.png` (quick: `results-quick`). Exits with 1 if a
section broke or a count of requests is not what it has to be; a time never decides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.ceph import shared_ceph
from bench.chart import draw
from bench.report import Section, figure_of, save, table
from bench.section import begin, end

SECTIONS = (
    "dispatch",
    "store_requests",
    "slow_store",
    "throughput",
    "transfers",
    "cold_start",
    "cancels",
    "stalls",
    "scale",
    "memory",
    "training",
    "simulation",
)
#: No time is measured in these, so a quick run has them side by side.
COUNTED = ("store_requests", "memory", "simulation")
#: A quick run has one Ceph RGW for all of these.
ON_CEPH = ("store_requests", "slow_store", "transfers", "stalls", "simulation")
FOLDER = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: bench/results.json, with --quick bench/results-quick.json",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.section) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    named = "results-quick.json" if arguments.quick else "results.json"
    out = arguments.out or FOLDER / named
    chosen = [name for name in SECTIONS if name in (arguments.section or SECTIONS)]
    done: list[Section] = []
    try:
        quick_ceph = arguments.quick and {*chosen} & {*ON_CEPH}
        with shared_ceph() if quick_ceph else nullcontext():
            for names in in_turn(chosen, quick=arguments.quick):
                for number, name in enumerate(names, len(done) + 1):
                    print(f"[{number}/{len(chosen)}] {title_of(name)}", file=sys.stderr)
                done += measured(names, quick=arguments.quick)
    except KeyboardInterrupt:
        print("interrupted; what was measured so far:", file=sys.stderr)
    done.sort(key=lambda section: SECTIONS.index(section.name))
    print(table(done))
    save(done, machine(), out, quick=arguments.quick)
    print(f"\nwritten: {out}")
    if draw(done, picture := out.with_suffix(".png")):
        print(f"written: {picture}")
    return int(any(section.failed for section in done) or len(done) < len(chosen))


def in_turn(chosen: list[str], *, quick: bool) -> list[list[str]]:
    """Sections one after the other; those of one list, at a time."""
    together = [name for name in chosen if quick and name in COUNTED]
    alone = [[name] for name in chosen if name not in together]
    return [together, *alone] if together else alone


def measured(names: list[str], *, quick: bool) -> list[Section]:
    """Run sections, all at a time. What they started ends with them, also when interrupted."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ThreadPoolExecutor() as pool:
        # Before the pool has a thread: a fork of several threads has one, and the others' locks.
        children = [begin(name, Path(folder), quick=quick) for name in names]
        try:
            ends = [pool.submit(end, child) for child in children]
            return [
                section(name, Path(folder), *each.result())
                for name, each in zip(names, ends, strict=True)
            ]
        except KeyboardInterrupt:
            for child in children:
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGINT)
            raise


def section(name: str, folder: Path, code: int, seconds: float) -> Section:
    """What one has measured, or that it broke."""
    if code:
        return Section(name, title_of(name), seconds, (), f"exit code {code}, see above")
    told = json.loads((folder / f"{name}.json").read_text())
    return Section(name, title_of(name), seconds, tuple(figure_of(fields) for fields in told))


def title_of(name: str) -> str:
    """The first line of its module's docstring."""
    spec = importlib.util.find_spec(f"bench.{name}")
    assert spec is not None, name
    assert spec.origin is not None, name
    return Path(spec.origin).read_text().split('"""')[1].splitlines()[0].rstrip(".")


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = [
        row.partition(":")[2].strip()
        for row in Path("/proc/cpuinfo").read_text().splitlines()
        if row.startswith("model name")
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("runpod", "boto3", "torch")},
    }


if __name__ == "__main__":
    sys.exit(main())
