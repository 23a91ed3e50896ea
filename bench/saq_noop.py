"""The no-op as a SAQ function. `BENCH_REDIS` is the URL of its queue."""

import os
from typing import Any

from saq import Queue


async def noop(_context: Any) -> dict[str, str]:
    """Nothing."""
    return {}


settings = {"queue": Queue.from_url(os.environ["BENCH_REDIS"]), "functions": [noop]}
