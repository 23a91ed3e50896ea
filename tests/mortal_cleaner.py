"""A cleaner in a process of its own that is killed at a certain write to the store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.aged import cleaned, cleaner
from tests.faulty_store import WRITES
from tests.servers import Place, open_place

if TYPE_CHECKING:
    from collections.abc import Callable


async def run_to_its_death(place: Place, scratch: Path, write: int) -> int:
    """Clean until the so-manieth write is done. The exit code, negative for a signal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, json.dumps([place, str(scratch), write])
    )
    return await process.wait()


async def _clean(place: Place, scratch: Path, write: int) -> None:
    worker = cleaner(open_place(place), scratch)
    store: Any = worker.store
    left = [write]
    for name in WRITES:
        setattr(store, name, _deadly(getattr(store, name), left))
    await cleaned(worker)


def _deadly(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    async def write(*arguments: Any, **options: Any) -> Any:
        result = await call(*arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return write


if __name__ == "__main__":
    place, scratch, write = json.loads(sys.argv[1])
    asyncio.run(_clean(place, Path(scratch), write))
