"""RunPod's way in: a job arrives, one action runs, one reply leaves.

The composition root: reads the settings, opens the store, makes the manager, gives the SDK its
handler. The only module that imports runpod.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import JsonValue

import console
from actions import (
    CancelAction,
    DownloadAction,
    HealthAction,
    KindsAction,
    ProcessesAction,
    ProcessStatusAction,
    StartAction,
    parse_action,
    parse_params,
    process_id_of,
)
from health import health
from jobs import JOBS
from process_manager import ProcessManager, Start
from processes.files import MAX_ROWS, Artifact, choose, linked, read_artifacts
from processes.lease import AWAY
from processes.links import LinkMaker
from processes.lookup import UnknownProcess
from processes.record import Snapshot, Status, view
from storage import PresignUnsupported, Store, open_store
from utils import Settings, WorkerError, load_settings, log_to_stderr, new_id, set_within, utc_now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

#: No reply is larger: RunPod takes 10 MB, and refuses the whole result above it.
MAX_REPLY_BYTES = 8_000_000
#: RunPod's own /status shows progress at most this often.
UPDATE_SECONDS = 2.0
#: The last part of the grace period of a drain is for replies that are under way.
REPLIES_SHARE = 0.1
#: The SDK gives this id to every job of `--test_input`.
LOCAL_JOB_ID = "local_test"
#: Requests at a time of a `control` worker; of an `all` worker beside those that fill its slots.
#: A `gpu` worker takes no more than it has slots: it never swallows what an idle one could run.
CONTROL_CONCURRENCY, SPARE_CONCURRENCY = 32, 7

Reply = dict[str, JsonValue]
#: How requests come in: from RunPod's queue, to the SDK's local server, or by hand.
WayIn = Literal["serverless", "api", "terminal"]


class Refused(WorkerError):
    """This worker does not do that, by its settings."""

    code = "refused"


class WorkerDraining(WorkerError):
    """This worker is shutting down and begins nothing more."""

    code = "worker_draining"
    retryable = True


class ReplyTooLarge(WorkerError):
    """The reply would exceed what RunPod carries."""

    code = "reply_too_large"


class Handler:
    """Runs one action per job. Nothing but a cancellation ever escapes from a call."""

    def __init__(self, store: Store, settings: Settings, *, way_in: WayIn = "serverless") -> None:
        self._store = store
        self.manager = ProcessManager(store, settings)
        self._lookup = self.manager.lookup
        self._links = LinkMaker(store)
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
        try:
            return _bounded(await self._answer(job))
        except WorkerError as error:
            return {"error": json.dumps(error.payload())}
        except Exception:
            log.exception("a fault of the worker")
            return {
                "error": json.dumps(WorkerError("a fault of the worker; see its log").payload())
            }
        finally:
            self._jobs -= 1

    def set_up(self) -> None:
        """Once, inside the event loop: take over the signals, recover in the background."""
        if self._set_up:
            return
        self._set_up = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, self._begin_shutdown, number, before)
        self._background = [
            loop.create_task(self.manager.recover()), loop.create_task(self._check_store())
        ]  # fmt: skip

    async def _check_store(self) -> None:
        """A store that cannot work is said at start-up, in words, and not at the first start."""
        health = await self._store.check()
        if not health.ok:
            log.error("the store %s does not work: %s", self._store.url, health.message)

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
            case DownloadAction():
                return await self._download(action)
            case HealthAction():
                return await health(self._store, self.manager, self._settings)
            case KindsAction():
                return {
                    "kinds": {name: job.params.model_json_schema() for name, job in JOBS.items()}
                }

    async def _start(self, action: StartAction, job: dict[str, Any]) -> Reply:
        if self._settings.role == "control":
            raise Refused("this worker has the role `control` and runs no jobs; send `start` to "
                          "the GPU endpoint")  # fmt: skip
        if self.manager.draining:
            return await self._leave_to_others()
        start = _start_of(action, job)
        if action.detach:
            if not self._settings.allow_detach:
                raise Refused(
                    "`detach` is refused: RunPod stops an idle worker and the job with it; on a "
                    "Pod or an always-on worker, set WORKER_ALLOW_DETACH=1"
                )
            return await self._view(await self.manager.begin(start))
        async with self._progress_shown(job, start.process_id):
            snapshot = await self.manager.deliver(start)
        if snapshot.record.status is Status.INTERRUPTED and self._way_in != "api":
            if self._way_in == "terminal":
                console.print_end(snapshot, [])
            return await self._leave_to_others()
        return await self._ended(snapshot)

    async def _leave_to_others(self) -> Reply:
        """For a worker that drains: without an answer RunPod delivers the job again, elsewhere.

        Raises:
            WorkerDraining: nobody would deliver it again.
        """
        if self._way_in == "api":
            raise WorkerDraining("this worker is shutting down; send the start again")
        self._unanswered += 1
        return await asyncio.Future()

    async def _ended(self, snapshot: Snapshot) -> Reply:
        """The reply of a start: the view, its files, and `error` if the process failed."""
        record = snapshot.record
        reply, rows, artifacts = await self._view(snapshot), [], []
        # How it ended is known and stored. The links may also be had later, by `download`.
        with suppress(PresignUnsupported, *AWAY):
            artifacts = await read_artifacts(self._store, record)
            rows = await self._rows(snapshot, artifacts[:MAX_ROWS])
        reply["files"] = [*rows]
        reply["next_cursor"] = rows[-1]["path"] if len(artifacts) > len(rows) > 0 else None
        if self._way_in == "terminal":
            console.print_end(snapshot, [str(row["url"]) for row in rows])
        if record.failure is not None and record.status is Status.FAILED:
            failure = record.failure
            reply["error"] = json.dumps(
                {"code": failure.code, "message": failure.message, "retryable": failure.retryable}
            )
        return reply

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
        return {
            "processes": [
                {"process_id": row.process_id, "kind": row.kind, "status": row.status.value,
                 "created_at": row.created_at.isoformat()}
                for row in rows
            ],
            "next_cursor": cursor,
        }  # fmt: skip

    async def _cancel(self, action: CancelAction) -> Reply:
        snapshot = await self.manager.cancel(action.process_id, wait_seconds=action.wait_seconds)
        return await self._view(snapshot)

    async def _download(self, action: DownloadAction) -> Reply:
        snapshot = await self._lookup.get(action.process_id)
        artifacts = choose(
            await self._artifacts(snapshot), path=action.path, pattern=action.pattern
        )
        left = [a for a in artifacts if action.cursor is None or a.path > action.cursor]
        page = left[:MAX_ROWS]
        return {
            "process_id": action.process_id,
            "status": snapshot.record.status.value,
            "attempt": snapshot.record.attempt,
            "files": [*await self._rows(snapshot, page, expires_in=action.expires_in)],
            "next_cursor": page[-1].path if len(left) > len(page) else None,
        }

    async def _artifacts(self, snapshot: Snapshot) -> list[Artifact]:
        if run := self._lookup.held(snapshot.record.process_id):
            return [Artifact.of(file) for file in run.uploads.files()]
        return await read_artifacts(self._store, snapshot.record)

    async def _rows(
        self, snapshot: Snapshot, artifacts: list[Artifact], *, expires_in: int = 3600
    ) -> list[Reply]:
        expires_at = (utc_now() + timedelta(seconds=expires_in)).isoformat(timespec="seconds")
        return await linked(
            self._store, snapshot.record, artifacts,
            expires_in=expires_in, expires_at=expires_at,
        )  # fmt: skip

    async def _view(self, snapshot: Snapshot) -> Reply:
        reply = view(snapshot, lease_seconds=self._settings.lease_seconds)
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
        await self.manager.drain()
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


def _start_of(action: StartAction, job: dict[str, Any]) -> Start:
    shown = parse_params(action.kind, action.params)
    job_id = None if job.get("id") in (None, LOCAL_JOB_ID) else str(job["id"])
    named = action.process_id or (process_id_of(job_id) if job_id else new_id())
    return Start(
        process_id=named,
        kind=action.kind,
        params=action.params,
        shown_params=shown,
        labels=action.labels,
        timeout_seconds=action.timeout_seconds,
        reject_when_busy=action.on_busy == "reject",
        runpod_job_id=job_id,
    )


def _bounded(reply: Reply) -> Reply:
    """`reply`, if RunPod can carry it."""
    size = len(json.dumps(reply))
    if size > MAX_REPLY_BYTES:
        raise ReplyTooLarge(f"the reply would be {size} bytes; ask for less at a time")
    return reply


async def _nothing() -> None:
    """The local API server has no way to show progress."""


def _exit(code: int) -> NoReturn:
    """Leave at once. The SDK waits for its handlers for ever, and the drained ones never answer."""
    for helper in multiprocessing.active_children():
        helper.kill()  # the SDK's ping would go on and vouch for a worker that is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


HELP = """\
A RunPod serverless worker for long GPU jobs. On RunPod it needs no arguments.

by hand:
  python rp_handler.py                    run ./test_input.json and show its progress
  python rp_handler.py --test_input '{"input": {"action": "kinds"}}'
                                          run one request
  python rp_handler.py --rp_serve_api     serve POST /runsync on http://localhost:8000
"""
AFTER_HELP = """\
More options, of the RunPod SDK: --rp_log_level, --rp_debugger, --rp_api_host, --rp_api_port.
Everything else is set by environment variables, see README.md.
"""


def main(arguments: list[str]) -> None:
    """Start the worker as the arguments and the environment say."""
    way_in = _way_in(_parse(arguments))
    settings = load_settings()
    at_terminal = way_in == "terminal" and sys.stderr.isatty()
    log_to_stderr("WARNING" if at_terminal else "INFO")
    # At its default, DEBUG, the SDK logs whole replies, links and all.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "WARN" if at_terminal else "INFO")
    import runpod

    try:
        store = open_store(settings)
    except WorkerError as error:
        sys.exit(str(error))
    handler = Handler(store, settings, way_in=way_in)
    runpod.serverless.start({"handler": handler, "concurrency_modifier": handler.concurrency})


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments that matter here; the SDK reads them again for itself."""
    parser = argparse.ArgumentParser(
        description=HELP, epilog=AFTER_HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--test_input", type=_job, metavar="JSON", help="a job, with its `input`")
    parser.add_argument("--rp_serve_api", action="store_true", help="serve the local API")
    return parser.parse_known_args(arguments)[0]


def _job(text: str) -> object:
    """Says what is wrong with a test input before the SDK meets it with a traceback."""
    with suppress(ValueError):
        job = json.loads(text)
        if isinstance(job, dict) and job.get("input") is not None:
            return job
    raise argparse.ArgumentTypeError(
        'takes a JSON object such as \'{"input": {"action": "kinds"}}\''
    )


def _way_in(arguments: argparse.Namespace) -> WayIn:
    if arguments.rp_serve_api or os.environ.get("RUNPOD_REALTIME_PORT"):
        return "api"
    by_hand = arguments.test_input or "RUNPOD_WEBHOOK_GET_JOB" not in os.environ
    return "terminal" if by_hand else "serverless"


if __name__ == "__main__":
    main(sys.argv[1:])
