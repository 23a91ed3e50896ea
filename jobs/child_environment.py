"""Which of the worker's environment variables a child gets to see."""

from __future__ import annotations

from collections.abc import Mapping

#: Where things are and how to compute. By name, not by pattern: `NVIDIA_*` would also pass on
#: NVIDIA_API_KEY. Whatever else a job needs, the operator names.
_NAMES = frozenset({
    "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH",
    "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_VERSION", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_REQUIRE_CUDA",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TORCH_HOME",
    "XDG_CACHE_HOME",
})  # fmt: skip


def child_environment(ours: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """What of `ours` is safe to pass on, and all that the operator has `named`."""
    passed = {
        name: value for name, value in ours.items() if name in _NAMES or name.startswith("LC_")
    }
    return passed | dict(named)
