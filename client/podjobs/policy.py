"""RunPod's policy for a start: how long it may run, and how long it may wait. Pure.

Without it the platform ends a job after ten minutes.
"""

from __future__ import annotations

import math
from typing import Any

#: Of a start without a time-out of its own.
DEFAULT_SECONDS = 86_400.0
#: The longest that RunPod allows.
LONGEST_SECONDS = 7 * 86_400.0
#: For the inputs and the results, on top of what the job itself may take.
AROUND_SECONDS = 1_800.0
#: A start may wait in the queue for so long.
QUEUE_SECONDS = 86_400.0


def policy_of(timeout_seconds: float | None) -> dict[str, Any]:
    """RunPod's `policy`, in milliseconds. `ttl` counts from the submission."""
    runs = DEFAULT_SECONDS if timeout_seconds is None else timeout_seconds + AROUND_SECONDS
    runs = min(runs, LONGEST_SECONDS)
    lives = min(runs + QUEUE_SECONDS, LONGEST_SECONDS)
    return {"executionTimeout": math.ceil(runs * 1000), "ttl": math.ceil(lives * 1000)}
