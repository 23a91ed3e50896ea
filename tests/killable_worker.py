"""A worker that only runs one attempt, to be killed: `killable_worker.py FOLDER THEN [fork]`.

It prints the ids of the guardian and of all below it, once they are there. With `fork` it also
has a fork of itself, which holds all of its pipes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from child import runner
from child.events import Event, Progress
from tests.children import UNRULY, attempt, descendants


async def main() -> None:
    runner.ENTRY = (UNRULY,)
    folder, then = Path(sys.argv[1]), sys.argv[2]
    child = await runner.Child.spawn(attempt(folder, "have_descendants", then=then))

    def show(event: Event) -> None:
        assert isinstance(event, Progress)
        below = sorted(descendants(child.pid))
        fork = os.fork() if "fork" in sys.argv else None
        if fork == 0:
            time.sleep(86400)
        shown = {"guardian": child.pid, "below": below, "fork": fork}
        print(json.dumps(shown), flush=True)  # noqa: T201

    await child.run(show)


asyncio.run(main())
