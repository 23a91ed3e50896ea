"""The real worker, as RunPod starts it: `rp_handler.py` under the unmodified SDK loop."""

import sys
from pathlib import Path
from types import SimpleNamespace

# At import the SDK lets py-cpuinfo measure the processor for over a second, for a debug field. It
# is prepared for a processor without a name; this keeps some dozen worker starts cheap.
sys.modules["cpuinfo"] = SimpleNamespace(get_cpu_info=dict)  # type: ignore[assignment]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rp_handler  # noqa: E402

if __name__ == "__main__":
    rp_handler.main(sys.argv[1:])
