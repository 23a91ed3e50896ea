"""One section of the bench in a process of its own, so that none finds what another left.

    python -m bench.section NAME OUT [--quick]

`NAME` is a module of this package with `run(quick: bool) -> list[Figure]`. Writes what it measured
to the file OUT as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from rp_handler import SWITCH_SECONDS


def main() -> None:
    sys.setswitchinterval(SWITCH_SECONDS)  # workers in this process are as in their own
    name, out = sys.argv[1:3]
    figures = importlib.import_module(f"bench.{name}").run("--quick" in sys.argv)
    Path(out).write_text(json.dumps([figure._asdict() for figure in figures]))


if __name__ == "__main__":
    main()
