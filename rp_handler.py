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
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from api.answers import Answers, HandedBack
from api.parsing import check_body
from api.progress import Look, Show, send_updates, show_nothing
from api.taking import guarded
from cli import console
from cli.arguments import WayIn, job_by_hand, parse, way_in_of
from cli.clean import clean_by_hand
from cli.doctor import check_fitness, doctor
from health.checks import GPU_SECONDS
from health.presence import Presence
from jobs import JOBS
from process_manager import ProcessManager
from programs.declaration import ProgramsInvalid, read_programs
from records.replies import Reply, encoded
from retention.cleaner import Cleaner
from storage import Store
from stores.open import open_store
from utils import WorkerError
from worker.gpus import Driver
from worker.log import log_context, log_to_stderr
from worker.meter import Meter
from worker.redaction import Redactor, environment_secrets
from worker.settings import Settings, load_settings, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

#: The last part of the grace period of a drain is for replies that are under way.
REPLIES_SHARE = 0.1
#: Requests at a time of a `control` worker; of an `all` worker beside those that fill its slots.
#: A `gpu` worker takes no more than it has slots: it never swallows what an idle one could run.
CONTROL_CONCURRENCY, SPARE_CONCURRENCY = 32, 7
#: Python's own 5 ms, waited for behind each of the threads that speak to the store, hold up the
#: event loop for 30 ms.
SWITCH_SECONDS = 0.001


class WorkerDraining(WorkerError):
    """This worker is shutting down and begins nothing more."""

    code = "worker_draining"
    retryable = True


class Handler:
    """The envelope: one reply per job, the SDK, the signals.

    Nothing but a cancellation ever escapes from a call.
    """

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
        self._settings = settings
        self._way_in = way_in
        self._redactor = redactor or Redactor()
        self._meter = meter or Meter(price_per_hour=settings.price_per_hour)
        self.manager = ProcessManager(store, settings, redactor=self._redactor, meter=self._meter)
        self.presence = Presence(store, settings, self._meter)
        self._cleaner = Cleaner(self.manager.leases)
        programs = read_programs(settings.programs)
        self._answers = Answers(
            store, settings, self.manager, self.presence, programs, self._redactor
        )
        #: Jobs under way here, and those of them that will get no answer (see `_hand_back`).
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
            check_body(job)
            reply = await self._answer(job)
            return self._without_secrets(reply, encoded(reply))
        except WorkerError as error:
            return {"error": json.dumps(self._redactor.value(error.payload()))}
        except Exception:
            log.exception("a fault of the worker")
            return {
                "error": json.dumps(WorkerError("a fault of the worker; see its log").payload())
            }

    async def _answer(self, job: dict[str, Any]) -> Reply:
        try:
            return await self._answers.answer(job, self._show(job))
        except HandedBack as handed_back:
            return await self._hand_back(handed_back.reply)

    async def _hand_back(self, reply: Reply | None) -> Reply:
        """Leave a start to another worker: RunPod delivers a job without an answer again.

        Raises:
            WorkerDraining: the local API server has no other worker, and nothing was begun here.
        """
        if self._way_in == "api":
            if reply is None:
                raise WorkerDraining("this worker is shutting down; send the start again")
            return reply
        if self._way_in == "terminal" and reply is not None:
            console.print_end(reply)
        self._unanswered += 1
        return await asyncio.Future()

    def _without_secrets(self, reply: Reply, text: str) -> Reply:
        """Mask this worker's own secrets: the last net behind the redaction of each part."""
        if not self._redactor.knows_part_of(text):
            return reply
        masked = self._redactor.reply(reply)
        assert isinstance(masked, dict)
        return masked

    def _show(self, job: dict[str, Any]) -> Show:
        match self._way_in:
            case "terminal":
                return console.show_progress
            case "serverless":
                return partial(_update_runpod, job)
            case "api":
                return show_nothing

    # ---- the life of the worker

    def set_up(self) -> None:
        """Take over the signals and begin the background tasks, once, inside the event loop."""
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
            self.manager.warm_up()

    async def _check_store(self) -> None:
        """Say at start-up, and not at the first start, that the store does not work."""
        health = await self._store.check()
        if not self.manager.running_and_queued()[0]:
            # Everything loaded so far lives as long as the process; freeze it, or a full
            # collection pauses the loop for 0.15 s.
            gc.freeze()
        if not health.ok:
            log.error("the store %s does not work: %s", self._store.url, health.message)

    async def _count_gpus(self) -> None:
        """Tell the meter how many GPUs a slot has; a driver that hangs delays no start."""
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

    def _begin_shutdown(self, number: int, before: Any) -> None:
        if self.manager.draining:
            _exit(128 + number)  # asked twice; the children die with us
        if self._way_in == "serverless" and callable(before):
            before(number, None)  # the SDK's own: it takes no more jobs
        self._shutdown = asyncio.create_task(self._shut_down(number))

    async def _shut_down(self, number: int) -> None:
        """Drain and leave. Jobs of drained processes stay unanswered and are delivered again."""
        log.info("%s: draining", signal.Signals(number).name)
        await asyncio.gather(self.manager.drain(), self.presence.leave())
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


async def _update_runpod(job: dict[str, Any], look: Look, done: asyncio.Event) -> None:
    """Show progress on RunPod's /status.

    The SDK's `progress_update` starts a thread for each update: those overtake one another, and
    arrive after the final reply.
    """
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules.rp_http import send_result

    async with AsyncClientSession() as session:

        async def send(view: Reply) -> None:
            await send_result(session, {"status": "IN_PROGRESS", "output": view}, job)

        await send_updates(send, look, done)


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
    for sentence in (*unknown_variables(os.environ), *JOBS.broken.values()):
        log.warning("%s", sentence)
    try:
        read_programs(settings.programs)  # also what a doctor must not pass over
    except ProgramsInvalid as error:
        sys.exit(str(error))
    if arguments.command == "doctor":
        sys.exit(doctor(settings, quick=arguments.quick, lifecycle=arguments.lifecycle))
    if arguments.command == "clean":
        sys.exit(clean_by_hand(settings, redactor, dry_run=arguments.dry_run))
    try:
        meter = Meter(price_per_hour=settings.price_per_hour)
        store = open_store(settings, meter)
    except WorkerError as error:
        sys.exit(str(error))
    handler = Handler(store, settings, way_in=way_in, redactor=redactor, meter=meter)
    if way_in == "terminal":
        sys.exit(asyncio.run(answer_by_hand(handler, job_by_hand(arguments))))
    serve(handler, settings, way_in)


async def answer_by_hand(handler: Handler, job: dict[str, Any]) -> int:
    """Carry out one job and print its reply; the program's exit code."""
    reply = await handler(job)
    reply.pop("refresh_worker", None)  # for the SDK
    console.print_reply(reply)
    if "kind" in reply and "files" in reply:
        console.print_end(reply)
    return 1 if "error" in reply else 0


def serve(handler: Handler, settings: Settings, way_in: WayIn) -> None:
    """Take jobs by RunPod's SDK until the worker ends."""
    # Torch and CUDA in this process, for its life; and a worker that cannot ping 8.8.8.8 would end.
    # `check_fitness` makes those of them that matter here.
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    # At its default, DEBUG, the SDK logs whole replies, links and all.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    runpod = import_sdk()
    if way_in == "serverless":

        async def worker_can_work() -> None:
            await check_fitness(settings)

        runpod.serverless.register_fitness_check(worker_can_work)
    guard_fetch()
    runpod.serverless.start({"handler": handler, "concurrency_modifier": handler.concurrency})


def guard_fetch() -> None:
    """Put the guard around the SDK's fetch; its own setting `jobs_fetcher` works in tests only."""
    from runpod.serverless.modules import rp_scale

    rp_scale.get_job = guarded(rp_scale.get_job)


def import_sdk() -> Any:
    """Import RunPod's SDK with a stand-in for py-cpuinfo.

    The SDK asks py-cpuinfo for the processor's name, for a debugger that nothing here uses. The
    answer takes 1.1 s of each cold start. The stand-in knows no name; the SDK expects that.
    """
    stand_in: Any = ModuleType("cpuinfo")
    stand_in.get_cpu_info = dict
    sys.modules["cpuinfo"] = stand_in
    import runpod

    return runpod


if __name__ == "__main__":
    main(sys.argv[1:])
