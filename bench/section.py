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

#: In these, threads of others than the worker run in the section's own process.
WITH_PEERS = ("throughput", "transfers")


def main() -> None:
    name, out = sys.argv[1:3]
    if name not in WITH_PEERS:
        sys.setswitchinterval(SWITCH_SECONDS)  # workers in this process are as in their own
    try:
        figures = importlib.import_module(f"bench.{name}").run("--quick" in sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)  # all that it had started has been ended on the way here
    Path(out).write_text(json.dumps([figure._asdict() for figure in figures]))


if __name__ == "__main__":
    main()
