"""A worker that does nothing, under the unmodified SDK loop: what the loop itself can do.

`BENCH_CONCURRENCY` is the constant that its concurrency modifier returns.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

# As `rp_handler.import_sdk` does: no second for a debug field at import.
sys.modules["cpuinfo"] = SimpleNamespace(get_cpu_info=dict)  # type: ignore[assignment]
os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # as rp_handler does: the SDK's own is DEBUG

import runpod  # noqa: E402

CONCURRENCY = int(os.environ["BENCH_CONCURRENCY"])


async def handler(job: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Answer."""
    return {}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: CONCURRENCY})
