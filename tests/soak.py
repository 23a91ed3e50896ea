"""Many short processes, while workers are killed, frozen and stopped at random.

    make soak                                       4 workers, 300 processes, on a folder
    python -m tests.soak --store ceph --seed 7      another run, on Ceph RGW

Real workers under the SDK's loop take jobs from the double of RunPod's control plane; some jobs are
made to fail and are retried, some are cancelled, by their caller or by RunPod. When all have come
to an end, every promise is checked against what the store holds. Prints the counts and the
violations; exits with 1 if there are any. The same seed makes the same plans; the machine's own
timing still differs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from records.record import STOPPED_BY_PLATFORM, Record, Status
from tests import servers
from tests.control_plane import ControlPlane
from tests.endpoint import SHORT_LEASE, Endpoint, start_of
from tests.invariants import read_record, violations
from tests.worker_process import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.control_plane import Job
    from tests.servers import Place
    from tests.worker_process import Worker

#: Starts that wait or run at a time, by worker; and how many of them a worker runs.
OUTSTANDING = 3
SLOTS = 2
#: Attempts are used up by design; nothing here shall end because of that.
SETTINGS: dict[str, Any] = {"slots": SLOTS, "max_attempts": 100, **SHORT_LEASE}
#: Seconds between two misfortunes of one worker, on average.
PEACE = 8.0
#: What befalls it, and how often.
FATES = {"kill": 4, "freeze": 3, "terminate": 2, "kill_child": 3}
#: A process that takes longer than this hangs.
PATIENCE = 180.0


@dataclass
class Plan:
    """What is asked of one process, and by whom it is cancelled, if at all."""

    params: dict[str, Any]
    cancelled_by: str | None = None  # "caller" or "platform"
    cancel_after: float = 0.0
    retries: int = 1


@dataclass
class Outcome:
    """What was told to callers about one process."""

    plan: Plan
    job: Job
    #: Every reply of a start, in order, and that to a cancel.
    replies: list[dict[str, Any]] = field(default_factory=list)
    cancel_reply: dict[str, Any] | None = None
    fault: str | None = None


def make_plan(chance: random.Random) -> Plan:
    """A short process: mostly well-behaved."""
    steps = chance.randint(2, 20)
    params: dict[str, Any] = {
        "steps": steps,
        "seconds": round(chance.uniform(0.1, 3.0), 2),
        "checkpoint_every": chance.choice([0, 1, 3, 5]),
        "artifacts": chance.choice([0, 1, 3]),
        "artifact_bytes": chance.choice([0, 16, 100_000]),
    }
    if chance.random() < 0.1:
        params["fail_at"] = chance.randint(1, steps)
    if chance.random() < 0.05:
        params["ignore_sigterm"] = True
    canceller = chance.choice(["caller", "platform"]) if chance.random() < 0.2 else None
    return Plan(params, canceller, chance.uniform(0, 4), retries=chance.randint(0, 2))


class Herd:
    """The workers. One that is gone is replaced by a new one, as RunPod would."""

    def __init__(self, endpoint: Endpoint, chance: random.Random, size: int) -> None:
        self._endpoint = endpoint
        self._chance = chance
        self._size = size
        self._born = 0
        self._alive: dict[str, Worker] = {}
        self._scenes: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Herd:
        for _ in range(self._size):
            self._bear()
        return self

    async def __aexit__(self, *_: object) -> None:
        for scene in self._scenes:
            scene.cancel()
        await asyncio.gather(*self._scenes, return_exceptions=True)
        for worker in list(self._alive.values()):
            worker.clean_up()

    async def haunt(self) -> None:
        """Let things befall the workers, for ever."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * PEACE / self._size)
            (fate,) = self._chance.choices(list(FATES), list(FATES.values()))
            worker = self._chance.choice(list(self._alive.values()))
            if not worker.running or worker.id not in self._endpoint.plane.workers:
                continue
            self.counts[fate] += 1
            scene = asyncio.create_task(getattr(self, f"_{fate}")(worker))
            self._scenes.add(scene)
            scene.add_done_callback(self._scenes.discard)

    async def at_rest(self) -> list[str]:
        """Wait until no worker has a child; what is left after a while is a violation."""
        await asyncio.gather(*self._scenes)
        deadline = time.monotonic() + 30
        while any(worker.children() for worker in self._alive.values()):
            if time.monotonic() > deadline:
                return [f"{w.id} has children left" for w in self._alive.values() if w.children()]
            await asyncio.sleep(0.1)
        return []

    def lives(self, worker_id: str) -> bool:
        """Whether a process of this worker has somebody to settle it."""
        return worker_id in self._alive

    def _bear(self) -> None:
        self._born += 1
        worker = self._endpoint.worker(f"w{self._born}", **SETTINGS)
        worker.start()
        self._alive[worker.id] = worker

    def _bury(self, worker: Worker) -> None:
        """Gone for good: RunPod delivers its jobs again, and starts another worker."""
        self._endpoint.plane.lose(worker.id)
        if self._alive.pop(worker.id, None):
            worker.clean_up()
            self._bear()

    async def _kill(self, worker: Worker) -> None:
        worker.kill()
        self._bury(worker)

    async def _terminate(self, worker: Worker) -> None:
        worker.terminate()
        await eventually(lambda: not worker.running, f"{worker.id} ended", 60)
        self._bury(worker)

    async def _freeze(self, worker: Worker) -> None:
        """Shorter or longer than a lease; RunPod may or may not take it for lost."""
        worker.freeze(children=self._chance.random() < 0.5)
        if self._chance.random() < 0.7:
            self._endpoint.plane.lose(worker.id)
        try:
            await asyncio.sleep(self._chance.uniform(0.5, 8))
        finally:
            worker.thaw()

    async def _kill_child(self, worker: Worker) -> None:
        if children := worker.children():
            with contextlib.suppress(Exception):  # it has ended just now
                self._chance.choice(children).kill()


class Soak:
    """One run."""

    def __init__(self, endpoint: Endpoint, herd: Herd, chance: random.Random) -> None:
        self._endpoint = endpoint
        self._herd = herd
        self._chance = chance
        self.outcomes: list[Outcome] = []
        self.cancels: Counter[str] = Counter()

    async def run(self, processes: int, outstanding: int) -> None:
        """See all of them to their ends while workers come and go."""
        turn = asyncio.Semaphore(outstanding)
        haunting = asyncio.create_task(self._herd.haunt())
        with tqdm(total=processes, unit="process", smoothing=0.05, file=sys.__stderr__) as bar:

            async def see_through(plan: Plan) -> None:
                async with turn:
                    await self._see_through(plan)
                bar.set_postfix(self._herd.counts, refresh=False)
                bar.update()

            plans = [make_plan(self._chance) for _ in range(processes)]
            try:
                async with asyncio.TaskGroup() as group:
                    for plan in plans:
                        group.create_task(see_through(plan))
            finally:
                haunting.cancel()
                await asyncio.gather(haunting, return_exceptions=True)

    async def _see_through(self, plan: Plan) -> None:
        plane = self._endpoint.plane
        outcome = Outcome(plan, plane.submit(start_of(**plan.params)))
        self.outcomes.append(outcome)
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(self._await_end(outcome), self._cancel(outcome))
        except TimeoutError:
            outcome.fault = f"no end within {PATIENCE} s: {outcome.job.timeline[-5:]}"

    async def _await_end(self, outcome: Outcome) -> None:
        job, retries = outcome.job, outcome.plan.retries
        while True:
            await self._endpoint.plane.finished(job.id, seconds=10 * PATIENCE)
            if job.output is not None:
                outcome.replies.append(job.output)
            if job.status != "FAILED" or retries == 0:
                return
            retries -= 1
            self._endpoint.plane.retry(job.id)

    async def _cancel(self, outcome: Outcome) -> None:
        if outcome.plan.cancelled_by is None:
            return
        await asyncio.sleep(outcome.plan.cancel_after)
        self.cancels[outcome.plan.cancelled_by] += 1
        if outcome.plan.cancelled_by == "platform":
            self._endpoint.plane.cancel(outcome.job.id)
            return
        asked = {"action": "cancel", "process_id": outcome.job.id, "wait_seconds": 60}
        ask = self._endpoint.plane.submit(asked, sync=True)
        await self._endpoint.plane.finished(ask.id, seconds=10 * PATIENCE)
        outcome.cancel_reply = ask.output  # None if there was nothing to cancel yet

    async def _settled(self, record: Record) -> Record | None:
        """Of a job that RunPod cancelled: as its owner leaves it; None if that is dead."""
        deadline = time.monotonic() + 30
        while self._herd.lives(record.writer.worker_id) and time.monotonic() < deadline:
            record = await self._endpoint.record(record.process_id)
            if record.released:
                break
            await asyncio.sleep(0.1)
        return record if self._herd.lives(record.writer.worker_id) else None

    async def check(self) -> list[str]:
        """What was promised and is not so."""
        found = list(self._endpoint.plane.violations)
        found += await self._herd.at_rest()
        for outcome in self.outcomes:
            found += await self._check(outcome)
        return found

    async def _check(self, outcome: Outcome) -> list[str]:
        job = outcome.job
        if outcome.fault:
            return [f"{job.id}: {outcome.fault}"]
        record = await read_record(self._endpoint.store, job.id)
        if job.status == "CANCELLED":  # by RunPod, which delivers it to nobody any more
            if record is not None and not record.released:
                record = await self._settled(record)
            if record is None:
                return []
            if not record.released:
                return [f"{job.id}: cancelled, and its owner leaves it {record.status}"]
        elif record is None:
            return [f"{job.id}: {job.status}, and there is no record"]
        elif not record.terminal:
            return [f"{job.id}: {job.status}, and its record says {record.status}"]
        # A worker that died at the end of a cancelled job may have left an old row behind.
        rows = job.status != "CANCELLED"
        told = [f"{job.id}: {sentence}" for sentence in _lies(outcome, record)]
        return told + await violations(self._endpoint.store, record, rows=rows)


def _lies(outcome: Outcome, record: Record) -> Iterator[str]:
    """Where callers were told something else than the record says, or got what nobody asked for."""
    job, status = outcome.job, record.status
    if job.status == "COMPLETED":
        told = [(reply["status"], reply["revision"]) for reply in outcome.replies[-1:]]
        if told != [(status, record.revision)]:
            yield f"its starter was told {told}, the record says {status} {record.revision}"
    if job.status == "FAILED" and status is not Status.FAILED:
        yield f"RunPod says FAILED {job.error}, the record {status}"
    cancel_reply = (outcome.cancel_reply or {}).get("status")
    if cancel_reply in ("completed", "cancelled") and cancel_reply != status:
        yield f"its canceller was told {cancel_reply}, the record says {status}"
    if status is Status.COMPLETED and "fail_at" in outcome.plan.params:
        yield "it completed, and was to fail"
    if status is Status.CANCELLED:
        by_platform = record.failure is not None and record.failure.code == STOPPED_BY_PLATFORM
        if outcome.plan.cancelled_by != ("platform" if by_platform else "caller"):
            yield f"cancelled, and nobody asked for that: {record.history[-1]}"


async def soak(place: Place, folder: Path, options: argparse.Namespace) -> list[str]:
    """Run it, print the counts, return the violations."""
    chance = random.Random(options.seed)  # noqa: S311 - no secret
    async with ControlPlane() as plane:
        endpoint = Endpoint(plane, place, folder)
        async with Herd(endpoint, chance, options.workers) as herd:
            run = Soak(endpoint, herd, chance)
            began = time.monotonic()
            await run.run(options.processes, OUTSTANDING * options.workers)
            found = await run.check()
        records = [await read_record(endpoint.store, o.job.id) for o in run.outcomes]
        await endpoint.close()
    ends = Counter(record.status.value if record else "never begun" for record in records)
    attempts = sum(record.attempt for record in records if record)
    _say(f"{len(records)} processes in {time.monotonic() - began:.0f} s: {_listed(ends)}")
    _say(f"{attempts} attempts; workers: {_listed(herd.counts)}; cancels: {_listed(run.cancels)}")
    _say(f"{len(found)} violations", *found)
    return found


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description="processes under random misfortune")
    parser.add_argument("--processes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=["local", "ceph"], default="local")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        place: Place = {"root": str(folder / "store")}
        if options.store == "ceph":
            place = stack.enter_context(servers.run_ceph()).place()
        # What the plane tells at its end is for the reader of a failed test.
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        with contextlib.suppress(KeyboardInterrupt):
            return 1 if asyncio.run(soak(place, folder, options)) else 0
    return 130


if __name__ == "__main__":
    sys.exit(main())
