"""RunPod's way in: a job arrives, one action runs, one reply leaves.

The composition root: reads the settings, opens the store, makes the manager, gives the SDK its
handler. The only module that imports runpod.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import console
from actions import (
    BulkDownloadAction,
    CancelAction,
    HealthAction,
    KindsAction,
    LogsAction,
    MetricsAction,
    ProcessesAction,
    ProcessStatusAction,
    StartAction,
)
from clean_command import clean_by_hand
from command_line import WayIn, parse, way_in_of
from doctor import check_fitness, doctor
from file_actions import FileActions, urls_of
from gpus import Driver
from jobs.programs import ProgramsInvalid, read_programs
from log_actions import LogActions
from meter import Meter
from parsing import parse_action
from process_manager import ProcessManager, Start
from processes.index import rows_shown
from processes.lease import AWAY
from processes.links import LinkMaker
from processes.reading import UnknownProcess
from processes.record import Snapshot, Status, view
from redaction import LINKS, Redactor, environment_secrets
from replies import Reply, encoded
from settings import Settings, load_settings, unknown_variables
from starts import archive_start, start_of
from storage import PresignUnsupported, Store, open_store
from upkeep.checks import GPU_SECONDS
from upkeep.presence import Presence
from upkeep.retention import Cleaner
from utils import WorkerError, set_within
from worker_actions import WorkerActions
from worker_log import log_context, log_to_stderr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

log = logging.getLogger(__name__)

#: Links that come with the end of a start work so long.
LINKS_SECONDS = 3600
#: RunPod's own /status shows progress at most this often.
UPDATE_SECONDS = 2.0
#: The last part of the grace period of a drain is for replies that are under way.
REPLIES_SHARE = 0.1
#: Requests at a time of a `control` worker; of an `all` worker beside those that fill its slots.
#: A `gpu` worker takes no more than it has slots: it never swallows what an idle one could run.
CONTROL_CONCURRENCY, SPARE_CONCURRENCY = 32, 7
#: Python's own 5 ms, waited for behind each of the threads that speak to the store, hold up the
#: event loop for 30 ms.
SWITCH_SECONDS = 0.001


class Refused(WorkerError):
    """This worker does not do that, by its settings."""

    code = "refused"


class WorkerDraining(WorkerError):
    """This worker is shutting down and begins nothing more."""

    code = "worker_draining"
    retryable = True


class Handler:
    """Runs one action per job. Nothing but a cancellation ever escapes from a call."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        way_in: WayIn = "serverless",
        redactor: Redactor | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Raises ProgramsInvalid."""
        self._store = store
        self._programs = read_programs(settings.programs)
        self._redactor = redactor or Redactor()
        self._meter = meter = meter or Meter(price_per_hour=settings.price_per_hour)
        self.manager = ProcessManager(store, settings, redactor=self._redactor, meter=meter)
        self._lookup = self.manager.lookup
        self.presence = Presence(store, settings, meter)
        self._cleaner = Cleaner(self.manager.worker)
        self._files = FileActions(store, self.manager, settings)
        self._logs = LogActions(store, self._lookup, settings)
        self._links = LinkMaker(store)
        self._about = WorkerActions(store, self.manager, settings, self.presence, self._programs)
        self._settings = settings
        self._way_in = way_in
        #: Jobs under way here, and those of them that will get no answer (see `_start`).
        self._jobs = self._unanswered = 0
        self._set_up = False

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """`job` is what RunPod hands out: `{"id", "input"}`. The reply is flat JSON.

        If the request failed, the reply's `error` is a JSON string
        `{"code", "message", "retryable"}`; so it is for a process that failed.
        """
        self.set_up()
        self._jobs += 1
        with log_context(request_id=str(job.get("id"))):
            try:
                return await self._reply(job)
            finally:
                self._jobs -= 1

    async def _reply(self, job: dict[str, Any]) -> Reply:
        try:
            reply = await self._answer(job)
            return self._without_secrets(reply, encoded(reply))
        except WorkerError as error:
            return {"error": json.dumps(self._redactor.value(error.payload()))}
        except Exception:
            log.exception("a fault of the worker")
            return {
                "error": json.dumps(WorkerError("a fault of the worker; see its log").payload())
            }

    def _without_secrets(self, reply: Reply, text: str) -> Reply:
        """The last net under all others: nothing of this worker's own leaves it in a reply."""
        if not self._redactor.knows_part_of(text):
            return reply
        return {n: each if n in LINKS else self._redactor.reply(each) for n, each in reply.items()}

    def set_up(self) -> None:
        """Once, inside the event loop: take over the signals, recover in the background."""
        if self._set_up:
            return
        self._set_up = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, self._begin_shutdown, number, before)
        self._background = [loop.create_task(self.manager.recover())]
        if self._way_in != "terminal":  # there it ends too soon, and the request itself will tell
            self._background += [
                loop.create_task(self._check_store()),
                loop.create_task(self._count_gpus()),
                loop.create_task(self.presence.keep()),
                loop.create_task(self._cleaner.keep()),
            ]
            if template := self.manager.worker.template:
                template.start()

    async def _check_store(self) -> None:
        """A store that cannot work is said at start-up, in words, and not at the first start."""
        health = await self._store.check()
        if not self.manager.running_and_queued()[0]:
            # What is there by now, boto3's models above all, stays for good. To look for garbage
            # among it would hold up everything for 0.15 s, every now and then.
            gc.freeze()
        if not health.ok:
            log.error("the store %s does not work: %s", self._store.url, health.message)

    async def _count_gpus(self) -> None:
        """For the figures; a driver that hangs does not hold up a start."""
        settings = self._settings
        if settings.role != "control":
            count = len((await Driver().look(GPU_SECONDS)).devices)
            self._meter.gpus = -(-count // settings.slots)

    def concurrency(self, _current: int) -> int:
        """For the SDK: how many jobs to take at a time. Constant, or it stops taking any.

        The SDK calls this inside its loop before it takes the first job: the moment to set up.
        """
        self.set_up()
        slots = self._settings.slots
        return {"control": CONTROL_CONCURRENCY, "gpu": slots, "all": slots + SPARE_CONCURRENCY}[
            self._settings.role
        ]

    # ---- actions

    async def _answer(self, job: dict[str, Any]) -> Reply:
        action = parse_action(job.get("input"))
        match action:
            case StartAction():
                return await self._start(action, job)
            case ProcessStatusAction():
                return await self._process_status(action)
            case ProcessesAction():
                return await self._processes(action)
            case CancelAction():
                return await self._cancel(action)
            case BulkDownloadAction(archive=True):
                return await self._archive(action, job)
            case LogsAction():
                return await self._logs.answer(action)
            case HealthAction() | MetricsAction() | KindsAction():
                return await self._about.answer(action)
            case _:
                return await self._files.answer(action)

    async def _start(self, action: StartAction, job: dict[str, Any]) -> Reply:
        if self._settings.role == "control":
            raise Refused("this worker has the role `control` and runs no jobs; send `start` to "
                          "the GPU endpoint")  # fmt: skip
        start = start_of(action, job, self._settings, self._redactor, self._programs)
        if action.detach:
            if not self._settings.allow_detach:
                raise Refused(
                    "`detach` is refused: RunPod stops an idle worker and the job with it; on a "
                    "Pod or an always-on worker, set WORKER_ALLOW_DETACH=1"
                )
            if self.manager.draining:
                return await self._leave_to_others()
            return await self._view(await self.manager.begin(start))
        return await self._see_through(start, job)

    async def _archive(self, action: BulkDownloadAction, job: dict[str, Any]) -> Reply:
        """A process like any other, but of this worker's own doing: any role may write one."""
        start = archive_start(action, job)
        return await self._see_through(start, job, expires_in=action.expires_in)

    async def _see_through(
        self, start: Start, job: dict[str, Any], *, expires_in: int = LINKS_SECONDS
    ) -> Reply:
        """Hold the request until the process ends; the reply is how it did."""
        if self.manager.draining:
            return await self._leave_to_others()
        async with self._progress_shown(job, start.process_id):
            snapshot = await self.manager.deliver(start)
        if snapshot.record.status is Status.INTERRUPTED and self._way_in != "api":
            if self._way_in == "terminal":
                console.print_end(snapshot, [])
            return await self._leave_to_others()
        return await self._ended(snapshot, expires_in)

    async def _leave_to_others(self) -> Reply:
        """For a worker that drains: without an answer RunPod delivers the job again, elsewhere.

        Raises:
            WorkerDraining: nobody would deliver it again.
        """
        if self._way_in == "api":
            raise WorkerDraining("this worker is shutting down; send the start again")
        self._unanswered += 1
        return await asyncio.Future()

    async def _ended(self, snapshot: Snapshot, expires_in: int) -> Reply:
        """The reply of a start: the view, its files, and `error` if the process failed."""
        record = snapshot.record
        reply = await self._view(snapshot)
        page: Reply = {"files": [], "next_cursor": None}
        # How it ended is known and stored. The links may also be had later, by `download`.
        with suppress(PresignUnsupported, *AWAY):
            page = await self._files.page_of_files(snapshot, expires_in=expires_in)
        if self._way_in == "terminal":
            console.print_end(snapshot, urls_of(page))
        if record.failure is not None and record.status is Status.FAILED:
            failure = record.failure
            reply["error"] = json.dumps(
                {"code": failure.code, "message": failure.message, "retryable": failure.retryable}
            )
        if self.manager.worker.gpus.leaked:  # the SDK takes it out and ends this worker
            reply["refresh_worker"] = True
        return reply | page

    async def _process_status(self, action: ProcessStatusAction) -> Reply:
        try:
            snapshot = await self._lookup.wait_for_news(
                action.process_id,
                since_revision=action.since_revision,
                wait_seconds=action.wait_seconds,
            )
        except UnknownProcess:
            return {"process_id": action.process_id, "status": "not_found"}
        return await self._view(snapshot)

    async def _processes(self, action: ProcessesAction) -> Reply:
        rows, cursor = await self._lookup.list(
            limit=action.limit, cursor=action.cursor, status=action.status, kind=action.kind
        )
        # A thousand take 4 ms: not on the event loop.
        return {"processes": await asyncio.to_thread(rows_shown, rows), "next_cursor": cursor}

    async def _cancel(self, action: CancelAction) -> Reply:
        snapshot = await self.manager.cancel(action.process_id, wait_seconds=action.wait_seconds)
        return await self._view(snapshot)

    async def _view(self, snapshot: Snapshot) -> Reply:
        reply = view(snapshot, lease_seconds=self._settings.lease_seconds)
        reason = self._lookup.why(snapshot)
        reply["why"] = reason._asdict() if reason else None
        if not snapshot.record.released:
            reply["links"] = {**await self._links.links(snapshot.record)}
        return reply

    # ---- while a start is held

    @asynccontextmanager
    async def _progress_shown(self, job: dict[str, Any], process_id: str) -> AsyncIterator[None]:
        """Show progress to whoever looks: RunPod's /status, or the person at this terminal."""

        async def look() -> Snapshot:
            return await self._lookup.get(process_id)

        done = asyncio.Event()
        match self._way_in:
            case "terminal":
                showing = console.show_progress(look, done)
            case "serverless":
                showing = self._send_updates(job, process_id, done)
            case "api":
                showing = _nothing()
        shown = asyncio.create_task(showing)
        try:
            yield
        finally:
            done.set()  # an update on its way arrives before the reply, and none follows
            await asyncio.wait([shown], timeout=5)
            shown.cancel()

    async def _send_updates(
        self, job: dict[str, Any], process_id: str, done: asyncio.Event
    ) -> None:
        """Progress for RunPod's /status: in order, one at a time, at most one per UPDATE_SECONDS.

        Sent here and not by the SDK's `progress_update`, which starts a thread for each: those
        overtake one another, and arrive after the final reply.
        """
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules.rp_http import send_result

        last: Reply = {}
        async with AsyncClientSession() as session:
            while not await set_within(done, UPDATE_SECONDS):
                try:
                    seen = await self._view(await self._lookup.get(process_id))
                    news = {k: seen[k] for k in ("status", "progress", "attempt", "artifacts")}
                    if news != last and not done.is_set():
                        await send_result(session, {"status": "IN_PROGRESS", "output": seen}, job)
                        last = news
                except (WorkerError, OSError, TimeoutError) as error:
                    log.warning("a progress update was not sent: %r", error)

    # ---- the end of the worker

    def _begin_shutdown(self, number: int, before: Any) -> None:
        if self.manager.draining:
            _exit(128 + number)  # asked twice; the children die with us
        if self._way_in == "serverless" and callable(before):
            before(number, None)  # the SDK's own: it takes no more jobs
        self._shutdown = asyncio.create_task(self._shut_down(number))

    async def _shut_down(self, number: int) -> None:
        """Drain and leave. Jobs of drained processes stay unanswered and are delivered again."""
        log.info("%s: draining", signal.Signals(number).name)
        await asyncio.gather(self.manager.drain(), self.presence.leave(), self._cleaner.leave())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace_seconds * REPLIES_SHARE):
                while self._jobs_in_progress() > self._unanswered:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        _exit(0 if self._way_in == "serverless" else 128 + number)

    def _jobs_in_progress(self) -> int:
        """Jobs whose reply has not left: the SDK sends it after the handler has returned."""
        if self._way_in != "serverless":
            return self._jobs
        from runpod.serverless.modules.worker_state import JobsProgress

        return int(JobsProgress().get_job_count())


async def _nothing() -> None:
    """The local API server has no way to show progress."""


def _exit(code: int) -> NoReturn:
    """Leave at once. The SDK waits for its handlers for ever, and the drained ones never answer."""
    for helper in multiprocessing.active_children():
        helper.kill()  # the SDK's ping would go on and vouch for a worker that is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def redactor_of(settings: Settings, environment: Mapping[str, str]) -> Redactor:
    """One that knows the secrets of this worker."""
    named = settings.secret_env.split(",")
    return Redactor(environment_secrets(environment, (name.strip() for name in named)))


def main(argv: list[str]) -> None:
    """Start the worker as the arguments and the environment say."""
    sys.setswitchinterval(SWITCH_SECONDS)
    arguments = parse(argv)
    way_in = way_in_of(arguments)
    settings = load_settings()
    at_terminal = way_in == "terminal" and sys.stderr.isatty()
    redactor = redactor_of(settings, os.environ)
    level = "WARNING" if at_terminal else "INFO"
    log_to_stderr(level, worker_id=settings.worker_id, redactor=redactor)
    for sentence in unknown_variables(os.environ):
        log.warning("%s", sentence)
    try:
        read_programs(settings.programs)  # also what a doctor must not pass over
    except ProgramsInvalid as error:
        sys.exit(str(error))
    if arguments.command == "doctor":
        sys.exit(doctor(settings, quick=arguments.quick, lifecycle=arguments.lifecycle))
    if arguments.command == "clean":
        sys.exit(clean_by_hand(settings, redactor, dry_run=arguments.dry_run))
    # Torch and CUDA in this process, for its life; and a worker that cannot ping 8.8.8.8 would end.
    # What of them matters, `check_fitness` looks at.
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    # At its default, DEBUG, the SDK logs whole replies, links and all.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "WARN" if at_terminal else "INFO")
    import runpod

    try:
        meter = Meter(price_per_hour=settings.price_per_hour)
        store = open_store(settings, meter)
    except WorkerError as error:
        sys.exit(str(error))
    handler = Handler(store, settings, way_in=way_in, redactor=redactor, meter=meter)
    if way_in == "serverless":

        async def worker_can_work() -> None:
            await check_fitness(settings)

        runpod.serverless.register_fitness_check(worker_can_work)
    runpod.serverless.start({"handler": handler, "concurrency_modifier": handler.concurrency})


if __name__ == "__main__":
    main(sys.argv[1:])
