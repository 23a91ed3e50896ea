"""Which of the worker's environment variables a child gets to see."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Where things are and how to compute. By name, not by pattern: `NVIDIA_*` would also pass on
#: NVIDIA_API_KEY. Whatever else a job needs, the operator names.
_NAMES = """
    PATH HOME USER LANG TZ TMPDIR LD_LIBRARY_PATH SSL_CERT_FILE
    PYTHONPATH PYTHONHOME PYTHONHASHSEED PYTHONDONTWRITEBYTECODE PYTHONUTF8
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_PATH CUDA_CACHE_PATH
    CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING CUDA_VERSION CUBLAS_WORKSPACE_CONFIG
    NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES NVIDIA_REQUIRE_CUDA
    OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT MKL_NUM_THREADS
    OPENBLAS_NUM_THREADS MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_
    PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF HF_HOME HF_HUB_CACHE
    HF_HUB_OFFLINE TORCH_HOME XDG_CACHE_HOME
"""
_PASSED = frozenset(_NAMES.split())


# What a child gets unless the worker's own environment, or the operator, says otherwise. All of it
# is read when a program begins, so that forks have it from the template.

#: glibc would give what a training step frees back to the kernel, which fills it with zeros for the
#: next one: 2,000 pages a step of 80 ms with the params of bench/training.py, 13,500 a step of
#: 0.9 s with 32 pixels and channels. Up to 256 MB are kept instead, which is 3 to 16 % more of the
#: short steps. What is larger than 32 MB, the most that every glibc takes, is not kept.
_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
#: OpenMP's threads would spin while they wait for each other: next to one busy process on the same
#: cores, a training step on 2 of them was measured to take 2.4 s instead of 0.13 s. Never to spin,
#: though, takes a third of the speed where the cores are free: of 80 small steps, 10 a second and
#: not 15. GNU's runtime, torch's own, can be told a number of turns. With this one it was 15 again,
#: and next to a busy process 3.5, which was 5 without spinning and next to nothing without limit.
_WAIT_POLICY = "OMP_WAIT_POLICY"
_WAITING = {_WAIT_POLICY: "PASSIVE", "GOMP_SPINCOUNT": "6000"}


def child_environment(ours: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """What of `ours` is safe to pass on, and all that the operator has `named`."""
    passed = {
        name: value for name, value in ours.items() if name in _PASSED or name.startswith("LC_")
    }
    chosen = _MEMORY | passed | dict(named)
    # a number of turns would overrule a policy that somebody has chosen
    return chosen if _WAIT_POLICY in chosen else _WAITING | chosen


def passed_through(names: str) -> dict[str, str]:
    """Those of our own variables that the operator names, comma-separated."""
    wanted = {name.strip() for name in names.split(",")}
    return {name: value for name, value in os.environ.items() if name in wanted}
