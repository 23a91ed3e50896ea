"""A worker that only runs one attempt, to be killed: `killable_worker.py FOLDER THEN`.

It prints the ids of the guardian and of all below it, once they are there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs import runner
from tests.children import UNRULY, attempt, descendants


async def main() -> None:
    runner.ENTRY = (UNRULY,)
    folder, then = Path(sys.argv[1]), sys.argv[2]
    child = await runner.Child.spawn(attempt(folder, "have_descendants", then=then))

    def show(event: runner.Event) -> None:
        assert isinstance(event, runner.Progress)
        below = sorted(descendants(child.pid))
        print(json.dumps({"guardian": child.pid, "below": below}), flush=True)  # noqa: T201

    await child.run(show)


asyncio.run(main())
