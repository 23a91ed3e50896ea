"""The smallest worker: what its handler does stands in the input. Runs the unmodified SDK loop."""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

# At import the SDK lets py-cpuinfo measure the processor for over a second, for a debug field. It
# is prepared for a processor without a name; this keeps two dozen worker starts cheap.
sys.modules["cpuinfo"] = SimpleNamespace(get_cpu_info=dict)  # type: ignore[assignment]

import runpod  # noqa: E402
from runpod.http_client import AsyncClientSession  # noqa: E402
from runpod.serverless.modules.rp_http import send_result  # noqa: E402
from runpod.serverless.modules.worker_state import JobsProgress  # noqa: E402

deliveries: Counter[str] = Counter()
tasks: set[asyncio.Task[None]] = set()


async def update(job, value):
    """An awaited progress update: sent when this returns, so it cannot be overtaken."""
    async with AsyncClientSession() as session:
        await send_result(session, {"status": "IN_PROGRESS", "output": value}, job)


async def update_late(job, value):
    """The fault that the double must notice: an update after the result."""
    while JobsProgress().get(job["id"]) is not None:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)
    await update(job, value)


async def hold(job):
    """Until it is stopped; says so, and what stopped it."""
    try:
        await update(job, "holding")  # a stop may strike here already, before the reply is read
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        sys.stdout.write(f"CANCELLED {job['id']}\n")
        raise


async def wait_for_file(job, gate):
    """Until the test opens the gate."""
    await update(job, "at the gate")
    while not gate.exists():  # noqa: ASYNC110 - nothing announces a file
        await asyncio.sleep(0.02)


async def handler(job):
    """Do what the input names, in this order."""
    order = job["input"]
    deliveries[job["id"]] += 1
    for value in order.get("updates", []):
        await update(job, value)
    if order.get("hold"):
        await hold(job)
    if "gate" in order:
        await wait_for_file(job, Path(order["gate"]))
    if deliveries[job["id"]] <= order.get("fail_times", 0):
        return {"error": "as ordered"}
    if "late" in order:
        tasks.add(asyncio.create_task(update_late(job, order["late"])))
    return {"echo": order.get("echo"), "pad": "x" * order.get("bytes", 0)}


async def pieces(job):
    """The streaming kind of handler."""
    for piece in job["input"]["pieces"]:
        yield piece


if __name__ == "__main__":
    concurrency = int(os.environ.get("ECHO_CONCURRENCY", "1"))
    runpod.serverless.start(
        {
            "handler": pieces if os.environ.get("ECHO_STREAM") else handler,
            "concurrency_modifier": lambda _: concurrency,
        }
    )
