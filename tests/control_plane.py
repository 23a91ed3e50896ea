"""A double of RunPod's control plane: the client's API and the worker's, over real HTTP.

The unmodified SDK loop runs against it in real worker processes, and the official client drives
it. It knows what RunPod promises and what RunPod does to a worker that dies, freezes or answers
too late; everything that happened to a job is in its `timeline`, which every assertion shows.

Where RunPod's own answer is not documented the double takes the stricter one, so that a test
never passes because the double was kind: an output over the limit fails its job (the real
platform has been seen to answer 400 and call the job COMPLETED without any output).

State changes only in synchronous methods, on one event loop: no locks. What a request looks like
is the business of `control_plane_http.py`; what it means stands here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections import Counter, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

from aiohttp import web

from tests.control_plane_http import Refused, application
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import runpod

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


@dataclass(frozen=True)
class Rules:
    """What a test may set. Seconds and bytes; the defaults of the limits are RunPod's."""

    endpoint: str = "the-endpoint"
    api_key: str = "the-api-key"
    take_hold: float = 5.0  # how long job-take is held open without a job
    stop_hold: float = 5.0  # the same of job-stop; the SDK sleeps 1 s after an empty one
    ping_interval: int = 1  # the SDK knows whole seconds only
    ping_loss: float | None = None  # a worker silent for so long is lost; None: only by `lose`
    runsync_wait: float = 90.0
    run_limit: int = 10_000_000
    runsync_limit: int = 20_000_000
    execution_timeout: float = 600.0
    ttl: float = 24 * 3600.0


@dataclass(eq=False)
class Job:
    """A request, from its arrival to its end, over all its deliveries."""

    id: str
    input: Any
    limit: int
    execution_timeout: float
    ttl: float
    only: str | None = None  # a test's wish: no other worker may take it
    status: str = "IN_QUEUE"
    worker: str | None = None  # who holds it now
    answered_by: str | None = None  # whose result ended the last delivery
    deliveries: int = 0
    retries: int = 0
    progress: Any = None  # of this delivery
    output: Any = None
    error: Any = None
    gone: bool = False  # its ttl passed: the client gets 404
    updates: list[Any] = field(default_factory=list)  # all accepted ones, in order of arrival
    chunks: deque[Any] = field(default_factory=deque)  # streamed, not yet fetched
    timeline: list[str] = field(default_factory=list)
    queued_at: float = 0.0
    taken_at: float = 0.0
    finished_at: float = 0.0
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status in FINAL

    def view(self) -> dict[str, Any]:
        """What /status answers."""
        reply: dict[str, Any] = {"id": self.id, "status": self.status}
        output = self.progress if self.status == "IN_PROGRESS" else self.output
        told = {"output": output, "error": self.error, "workerId": self.worker}
        reply |= {name: value for name, value in told.items() if value is not None}
        if self.deliveries:
            reply["delayTime"] = round((self.taken_at - self.queued_at) * 1000)
        if self.finished and self.deliveries:
            reply["executionTime"] = round((self.finished_at - self.taken_at) * 1000)
        return reply


@dataclass(eq=False)
class WorkerSeen:
    """What the control plane knows of a worker: only what the worker told it."""

    id: str
    alive: bool = True
    takes: int = 0  # job-take requests that arrived
    batch_sizes: list[int] = field(default_factory=list)
    pings: int = 0
    last_ping: float = 0.0
    ping_jobs: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)  # not yet fetched
    losses: int = 0


class ControlPlane:
    """`async with ControlPlane(ping_loss=3) as plane:`; the arguments are the fields of `Rules`."""

    def __init__(self, **rules: Any) -> None:
        self.rules = Rules(**rules)
        self.endpoint, self.api_key = self.rules.endpoint, self.rules.api_key
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, WorkerSeen] = {}
        self.queue: deque[Job] = deque()
        self.late_updates: list[tuple[str, Any]] = []  # after the worker's own final result
        self.ignored_updates: list[tuple[str, str, Any]] = []  # of a job no longer the worker's
        self.ignored_results: list[tuple[str, str, Any]] = []  # the same; (job, worker, payload)
        self.violations: list[str] = []  # what a correct worker never does, late updates included
        self.odd_rows: list[Any] = []  # no jobs, handed out beside the next batch
        self.url = ""
        self._born = time.monotonic()
        self._changed = asyncio.Event()
        self._closing = False

    # -- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        # A request whose client died must not take a job: aiohttp cancels it only when asked to.
        app = application(self)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._watch = asyncio.create_task(self._watch_pings())
        return self

    async def __aexit__(self, *_: object) -> None:
        sys.stderr.write(f"{self.story()}\n")  # pytest shows it when the test has failed
        self._closing = True
        self._notify()
        self._watch.cancel()
        for job in self.jobs.values():
            _stop_timers(job)
        await self._runner.cleanup()

    async def _watch_pings(self) -> None:
        """Lose the workers that stopped pinging; one that never pinged is not expected to."""
        loss = self.rules.ping_loss
        while loss is not None:
            await asyncio.sleep(loss / 10)
            for worker in list(self.workers.values()):
                if worker.alive and worker.pings and time.monotonic() - worker.last_ping > loss:
                    self.lose(worker.id)

    # -- for tests -------------------------------------------------------------------------------

    def worker_env(self, worker_id: str) -> dict[str, str]:
        """The environment RunPod gives a worker, pointing here."""
        base = f"{self.url}/v2/{self.endpoint}"
        return {
            # The SDK appends "&name=value" without looking: each URL already has a query, but ping.
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=double",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=double",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=double",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": str(self.rules.ping_interval * 1000),
            "RUNPOD_AI_API_KEY": self.api_key,
            "RUNPOD_ENDPOINT_ID": self.endpoint,
            "RUNPOD_POD_ID": worker_id,
            # The SDK's own start-up checks want 4 GB of free memory and a connection to 8.8.8.8.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "no_proxy": "127.0.0.1",  # the ping process obeys the machine's proxy
        }

    @contextmanager
    def client(self) -> Iterator[runpod.Endpoint]:
        """The official client. It blocks: call it in a thread (`asyncio.to_thread`)."""
        import runpod

        with mock.patch.object(runpod, "endpoint_url_base", f"{self.url}/v2"):
            endpoint = runpod.Endpoint(self.endpoint, api_key=self.api_key)
        with endpoint.rp_client.rp_session as session:
            session.trust_env = False  # neither the machine's proxy nor its .netrc
            yield endpoint

    async def until(
        self, condition: Callable[[], Any], why: str = "", seconds: float = PATIENCE
    ) -> None:
        """Wait until something that the control plane can see holds."""
        if not await self.wait(condition, seconds):
            raise AssertionError(f"not within {seconds} s: {why}\n{self.story()}")

    async def finished(self, job_id: str, seconds: float = PATIENCE) -> Job:
        """Wait until the job has a final status."""
        job = self.jobs[job_id]
        await self.until(lambda: job.finished, f"{job_id} finished", seconds)
        return job

    async def taken(self, job_id: str, by: str | None = None, seconds: float = PATIENCE) -> Job:
        """Wait until a worker holds the job."""
        job = self.jobs[job_id]
        await self.until(
            lambda: job.status == "IN_PROGRESS" and by in (None, job.worker),
            f"{job_id} taken by {by or 'any worker'}",
            seconds,
        )
        return job

    def story(self) -> str:
        """Everything that happened, for the reader of a failed assertion."""
        lines = [f"--- control plane {self.endpoint}", *map(str, self.workers.values())]
        for job in self.jobs.values():
            lines += [f"job {job.id}: {job.status}", *(f"  {line}" for line in job.timeline)]
        return "\n".join([*lines, *(f"violation: {text}" for text in self.violations)])

    # -- the client's side -----------------------------------------------------------------------

    def submit(
        self,
        job_input: Any,
        *,
        sync: bool = False,
        policy: dict[str, Any] | None = None,
        only: str | None = None,
    ) -> Job:
        """Queue a request, as /run and /runsync do; `only` names the one worker that may take it.

        The policy is in milliseconds, as on the wire; RunPod's minima (5 s, 10 s) do not hold.
        """
        policy = policy or {}
        job = Job(
            id=f"sync-{uuid.uuid4()}-u1" if sync else f"{uuid.uuid4()}-u1",
            input=job_input,
            limit=self.rules.runsync_limit if sync else self.rules.run_limit,
            execution_timeout=policy.get("executionTimeout", self.rules.execution_timeout * 1000)
            / 1000,
            ttl=policy.get("ttl", self.rules.ttl * 1000) / 1000,
            only=only,
        )
        if len(json.dumps({"input": job_input})) > job.limit:
            raise Refused(400, f"the request is larger than {job.limit} bytes")
        self.jobs[job.id] = job
        self._enqueue(job, "queued")
        return job

    def cancel(self, job_id: str) -> Job:
        """CANCELLED at once; the worker that holds it hears of it on its stop channel."""
        job = self.jobs[job_id]
        if not job.finished:
            self.stop(job)
            self._finish(job, "CANCELLED", "cancelled by the client")
        return job

    def retry(self, job_id: str) -> Job:
        """Queue a FAILED or TIMED_OUT job again, under the same id and without its output."""
        job = self.jobs[job_id]
        if job.status not in ("FAILED", "TIMED_OUT"):
            raise Refused(400, f"only FAILED and TIMED_OUT jobs can be retried: {job.status}")
        job.retries += 1
        self._enqueue(job, "queued again by /retry")
        return job

    def purge(self) -> int:
        """Cancel all that waits; what runs goes on."""
        waiting = list(self.queue)
        for job in waiting:
            self._finish(job, "CANCELLED", "purged")
        return len(waiting)

    def health(self) -> dict[str, Any]:
        """What /health answers."""
        jobs = Counter(job.status for job in self.jobs.values())
        alive = [worker.id for worker in self.workers.values() if worker.alive]
        busy = {job.worker for job in self.jobs.values() if job.status == "IN_PROGRESS"}
        running = len(busy.intersection(alive))
        return {
            "jobs": {
                "completed": jobs["COMPLETED"],
                "failed": jobs["FAILED"],
                "inProgress": jobs["IN_PROGRESS"],
                "inQueue": jobs["IN_QUEUE"],
                "retried": sum(job.retries for job in self.jobs.values()),
            },
            "workers": {
                "idle": len(alive) - running,
                "initializing": 0,
                "ready": len(alive),
                "running": running,
                "throttled": 0,
                "unhealthy": 0,
            },
        }

    # -- the platform's side ---------------------------------------------------------------------

    def lose(self, worker_id: str) -> list[Job]:
        """Give up a worker: its jobs are queued again under their ids, its open polls get none."""
        worker = self.seen(worker_id)
        worker.alive = False
        worker.losses += 1
        held = [job for job in self.jobs.values() if self._holds(worker_id, job)]
        for job in held:
            self.redeliver(job)
        self._notify()
        return held

    def redeliver(self, job: Job) -> None:
        """Queue a job in progress again while the worker that has it knows nothing of that."""
        job.only = None
        self._enqueue(job, f"taken away from {job.worker}, queued again")

    def stop(self, job: Job) -> None:
        """Put the job on the stop channel of the worker that holds it, if one does.

        The SDK drops a stop for a job that it has taken but not begun (up to 0.1 s), and nobody
        repeats it: the handler then runs to its end, for nothing. A test that wants the stop to
        hit waits for a sign of the handler first, not for the status IN_PROGRESS.
        """
        if job.status == "IN_PROGRESS" and job.worker is not None:
            self.seen(job.worker).stops.append(job.id)
            self._note(job, f"stop for {job.worker}")

    def seen(self, worker_id: str) -> WorkerSeen:
        """What is known of this worker; asking makes it known."""
        return self.workers.setdefault(worker_id, WorkerSeen(worker_id))

    def _enqueue(self, job: Job, what: str) -> None:
        _stop_timers(job)
        job.status, job.worker = "IN_QUEUE", None
        job.progress = job.output = job.error = None
        job.queued_at = time.monotonic()
        self.queue.append(job)
        self._set_timer(job, "ttl", job.ttl, self._expire)
        self._note(job, what)

    def _finish(self, job: Job, status: str, what: str) -> None:
        _stop_timers(job)
        with suppress(ValueError):
            self.queue.remove(job)
        job.status = status
        job.finished_at = time.monotonic()
        self._note(job, f"{status}: {what}")

    def _time_out(self, job: Job) -> None:
        job.error = "executionTimeout exceeded"
        self.stop(job)
        self._finish(job, "TIMED_OUT", job.error)

    def _expire(self, job: Job) -> None:
        """The ttl counts from the queueing and does not spare a job that runs."""
        job.gone = job.status == "IN_PROGRESS"
        job.error = "ttl exceeded"
        self.stop(job)
        self._finish(job, "TIMED_OUT", job.error)

    def _holds(self, worker_id: str, job: Job) -> bool:
        return job.status == "IN_PROGRESS" and job.worker == worker_id

    # -- the worker's side -----------------------------------------------------------------------

    async def take(self, worker_id: str, count: int, connected: Callable[[], bool]) -> list[Job]:
        """Up to `count` jobs, as soon as there is one; none when the hold is over."""
        worker = self.seen(worker_id)
        worker.alive = True
        worker.takes += 1
        worker.batch_sizes.append(count)
        self._notify()
        losses = worker.losses  # a worker given up in the meantime may be frozen: nothing for it

        def given_up() -> bool:
            return worker.losses != losses or not connected()

        def eligible() -> list[Job]:
            return [job for job in self.queue if job.only in (None, worker_id)]

        await self.wait(lambda: given_up() or eligible(), self.rules.take_hold)
        jobs = [] if given_up() or self._closing else eligible()[:count]
        for job in jobs:
            self._hand_over(job, worker_id)
        return jobs

    def _hand_over(self, job: Job, worker_id: str) -> None:
        self.queue.remove(job)
        job.status, job.worker, job.answered_by = "IN_PROGRESS", worker_id, None
        job.deliveries += 1
        job.taken_at = time.monotonic()
        self._set_timer(job, "execution", job.execution_timeout, self._time_out)
        self._note(job, f"taken by {worker_id} (delivery {job.deliveries})")

    async def stops(self, worker_id: str, connected: Callable[[], bool]) -> list[str]:
        """The ids this worker shall stop, each told once."""
        worker = self.seen(worker_id)
        await self.wait(lambda: worker.stops or not connected(), self.rules.stop_hold)
        if not connected():
            return []
        told, worker.stops = worker.stops, []
        for job_id in told:
            self._note(self.jobs[job_id], f"stop told to {worker_id}")
        return told

    def ping(self, worker_id: str, job_ids: list[str]) -> None:
        """A heartbeat; it revives a worker that was given up."""
        worker = self.seen(worker_id)
        worker.alive = True
        worker.pings += 1
        worker.last_ping = time.monotonic()
        worker.ping_jobs = job_ids
        self._notify()

    def done(self, worker_id: str, job: Job, body: bytes) -> None:
        """A progress update or the final result, whichever the body says."""
        payload = self._payload(worker_id, job, body)
        if payload.get("status") == "IN_PROGRESS":
            self._update(worker_id, job, payload.get("output"))
        elif not self._holds(worker_id, job):
            self.ignored_results.append((job.id, worker_id, payload))
            self._note(job, f"ignored the result of {worker_id}")
        else:
            self._result(worker_id, job, payload)

    def stream(self, worker_id: str, job: Job, body: bytes) -> None:
        """A piece of a generator's output."""
        payload = self._payload(worker_id, job, body)
        if self._holds(worker_id, job):
            job.chunks.append(payload)
            self._note(job, f"piece {len(job.chunks)} from {worker_id}")

    def _payload(self, worker_id: str, job: Job, body: bytes) -> dict[str, Any]:
        """The body as an object of at most the limit; else the job fails and the SDK gets a 400."""
        try:
            payload = json.loads(body)
        except ValueError:
            payload = None
        if len(body) > job.limit:
            problem = f"{len(body)} bytes are more than the limit of {job.limit}"
        elif isinstance(payload, dict):
            return payload
        else:
            problem = "the body is no JSON object"
        self._violation(job, f"{worker_id} sent a bad result: {problem}")
        if self._holds(worker_id, job):
            job.error, job.answered_by = problem, worker_id
            self._finish(job, "FAILED", problem)
        raise Refused(400, problem)

    def _update(self, worker_id: str, job: Job, output: Any) -> None:
        if self._holds(worker_id, job):
            job.progress = output
            job.updates.append(output)
            self._note(job, f"update from {worker_id}: {json.dumps(output)[:200]}")
        elif job.answered_by == worker_id:
            self.late_updates.append((job.id, output))
            self._violation(job, f"{worker_id} sent an update after its result: {output!r:.200}")
        else:  # it cannot know yet that the job is not its own any more
            self.ignored_updates.append((job.id, worker_id, output))
            self._note(job, f"ignored an update of {worker_id}")

    def _result(self, worker_id: str, job: Job, payload: dict[str, Any]) -> None:
        job.answered_by = worker_id
        job.output, job.error = payload.get("output"), payload.get("error")
        if job.error is not None and not isinstance(job.error, str):
            self._violation(job, f"{worker_id} sent an error that is no string")
        self._finish(job, "FAILED" if job.error else "COMPLETED", f"the result of {worker_id}")

    # -- inside ----------------------------------------------------------------------------------

    async def wait(self, condition: Callable[[], Any], seconds: float) -> bool:
        """Until the condition holds: looked at after every change, and at the end."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self._closing:
                return False
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                return bool(condition())
        return True

    def _notify(self) -> None:
        """Wake all who wait; those who begin to wait now wait for the next change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _note(self, job: Job, what: str) -> None:
        job.timeline.append(f"{time.monotonic() - self._born:8.3f} {what}")
        self._notify()

    def _violation(self, job: Job, what: str) -> None:
        self.violations.append(f"{job.id}: {what}")
        self._note(job, f"VIOLATION: {what}")

    def _set_timer(self, job: Job, name: str, seconds: float, act: Callable[[Job], None]) -> None:
        job.timers[name] = asyncio.get_running_loop().call_later(seconds, act, job)


def _stop_timers(job: Job) -> None:
    for timer in job.timers.values():
        timer.cancel()
    job.timers.clear()
