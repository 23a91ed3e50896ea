"""Measure this worker beside what its users would pick instead, in one run.

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
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.chart import draw
from bench.report import Section, figure_of, save, table

SECTIONS = (
    "dispatch", "store_requests", "slow_store", "throughput", "transfers", "cold_start", "cancels",
    "stalls", "scale", "memory", "training", "simulation",
)  # fmt: skip
FOLDER = Path(__file__).resolve().parent
#: A developer's own settings must not reach what is measured.
FOREIGN = ("RUNPOD_", "WORKER_", "S3_", "AWS_", "BUCKET_")

#: awscrt is here as a peer; were boto3 to find it, it would also sign for the worker, which comes
#: without it.
ENVIRONMENT = {"BOTO_DISABLE_CRT": "true"}


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
        for number, name in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {title_of(name)}", file=sys.stderr)
            done.append(measured(name, quick=arguments.quick))
    except KeyboardInterrupt:
        print("interrupted; what was measured so far:", file=sys.stderr)
    print(table(done))
    save(done, machine(), out, quick=arguments.quick)
    print(f"\nwritten: {out}")
    if draw(done, picture := out.with_suffix(".png")):
        print(f"written: {picture}")
    return int(any(section.failed for section in done) or len(done) < len(chosen))


def measured(name: str, *, quick: bool) -> Section:
    """Run one section. What it started ends with it, also when it is interrupted."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "bench.section", name, str(out)]
        own = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        # In a group of its own: an interrupt reaches it once, from here, and it cleans up.
        child = subprocess.Popen(
            command + ["--quick"] * quick, env=own | ENVIRONMENT | {"TMPDIR": folder},
            cwd=FOLDER.parent, process_group=0,
        )  # fmt: skip
        try:
            code = child.wait()
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGINT)
            child.wait()
            raise
        seconds = time.monotonic() - began
        if code:
            return Section(name, title_of(name), seconds, (), f"exit code {code}, see above")
        figures = tuple(figure_of(fields) for fields in json.loads(out.read_text()))
    return Section(name, title_of(name), seconds, figures)


def title_of(name: str) -> str:
    """The first line of its module's docstring."""
    spec = importlib.util.find_spec(f"bench.{name}")
    assert spec is not None, name
    assert spec.origin is not None, name
    return Path(spec.origin).read_text().split('"""')[1].splitlines()[0].rstrip(".")


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cpu = [row.partition(":")[2].strip() for row in Path("/proc/cpuinfo").read_text().splitlines()
           if row.startswith("model name")]  # fmt: skip
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
