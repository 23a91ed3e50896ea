"""Does torch compute on this machine? A program of its own, so that a broken driver breaks only it.

    python -m child.compute_check

Multiplies matrices whose product is known on every CUDA device, on the CPU where there is none, and
prints `{"message": ...}`. Exits with another code than 0 when it cannot, and says why.
"""

from __future__ import annotations

import json
import sys


def compute() -> str:
    """What was computed where.

    Raises:
        ArithmeticError: a device multiplies wrongly. Besides, whatever torch raises.
    """
    import torch

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    for device in devices:
        size = 512
        ones = torch.ones(size, size, device=device)
        product = ones @ ones
        if not bool((product == size).all()):
            raise ArithmeticError(f"{device} multiplies wrongly")
    return f"torch {torch.__version__} computes on {', '.join(devices)}"


if __name__ == "__main__":
    try:
        message = compute()
    except Exception as error:  # noqa: BLE001  # whatever torch raises
        # what happened stands in the first line; CUDA's errors end in advice
        sys.exit(f"{type(error).__name__}: {error}".partition("\n")[0])
    sys.stdout.write(json.dumps({"message": message}) + "\n")
