"""Put the table and the chart of a run into docs/measurements.md, below what people wrote there.

python -m bench.document [bench/results.json]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from bench.report import section_of, table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "measurements.md"
HEADING = "## All figures\n"


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench" / "results.json"
    told = json.loads(results.read_text())
    DOCUMENT.write_text(
        with_figures(DOCUMENT.read_text(), table(map(section_of, told["sections"])))
    )
    shutil.copyfile(results.with_suffix(".png"), DOCUMENT.with_suffix(".png"))


def with_figures(document: str, figures: str) -> str:
    """The document up to its heading, and then the figures."""
    written, heading, _ = document.partition(HEADING)
    return f"{written}{heading}\n```\n{figures}\n```\n\n![the same as bars](measurements.png)\n"


if __name__ == "__main__":
    main()
