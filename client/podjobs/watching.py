"""Following a process with as few requests as do, and without waking a GPU.

In this order, each look uses the first source that there is: the record behind its presigned link;
the RunPod job, whose status shows the newest view while it runs; a worker, asked with low priority.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx

from podjobs.errors import EndpointUnreachable, error_of
from podjobs.log_tail import lines_after
from podjobs.models import View
from podjobs.tracking import Logged, Tracker
from podjobs.transport import Job, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from podjobs.tracking import Event
    from podjobs.transport import Reply, Transport

#: Between two looks through a link or at a job.
LOOK_SECONDS = 2.0
#: Between two looks through a worker on RunPod: each is a request in the endpoint's queue.
ASK_SECONDS = 10.0
#: How often the job is looked at while a link shows the record: only the job knows that the
#: platform ended it, and the reason why the process is slow.
JOB_SECONDS = 15.0
#: A worker holds a status request this long for something new.
LONG_POLL_SECONDS = 20.0
#: The workers' default lease: a record that has not been written for longer has no worker.
LEASE_SECONDS = 30.0


class Watch:
    """One process, followed to its end."""

    def __init__(
        self,
        process_id: str,
        runs: Transport,
        asks: Transport,
        http: httpx.AsyncClient,
        *,
        job_id: str | None = None,
        resend: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`runs` holds the start, `asks` answers about it; `resend` sends the start again."""
        self._id = process_id
        self._runs, self._asks, self._http = runs, asks, http
        self._job_id, self._job = job_id, None if job_id is None else Job(job_id, "IN_QUEUE")
        self._resend = resend
        self._tracker = Tracker()
        self._links: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._looked_at_job = 0.0
        self._log_place = (0, 0)

    async def events(self, *, logs: bool) -> AsyncIterator[Event]:
        """All that happens until the process has ended for good; `logs` includes its lines."""
        going_on = True
        while going_on:
            view = await self._look()
            if view.attempt != self._attempt and not view.links:
                self._links = {}  # they lead to another attempt's log
            for event in self._tracker.accept(view):
                yield event
            for line in await self._new_lines(view) if logs else ():
                yield line
            if going_on := await self._goes_on(view):
                await asyncio.sleep(self._pause)

    async def _goes_on(self, view: View) -> bool:
        """Whether more is to come; a start that the platform has dropped is sent again."""
        dropped = view.status == "interrupted" or view.stopped_by_platform
        if not dropped:
            return not view.ended and view.status != "not_found"
        if await self._held():
            return True
        if self._resend is None or self._called_off:
            return False
        await self._send_again(self._resend)
        return True

    @property
    def _attempt(self) -> int:
        return self._tracker.view.attempt if self._tracker.view else 0

    @property
    def _revision(self) -> int:
        """Of the newest view by a worker; 0 before there is one."""
        return self._tracker.view.revision if self._tracker.view else 0

    @property
    def _pause(self) -> float:
        if self._links or self._shown_by_job:
            return LOOK_SECONDS
        return 0.2 if not self._asks.shows_progress else ASK_SECONDS

    @property
    def _shown_by_job(self) -> bool:
        return self._runs.shows_progress and self._job is not None and self._job.active

    @property
    def _called_off(self) -> bool:
        """Whether a person cancelled the job at the platform."""
        return self._job is not None and self._job.status == "CANCELLED"

    async def _send_again(self, resend: Callable[[], Awaitable[str]]) -> None:
        self._job_id = await resend()
        self._job = Job(self._job_id, "IN_QUEUE")
        self._links = {}

    # ---- one look

    async def _look(self) -> View:
        now = asyncio.get_running_loop().time()
        view = await self._by_link() if "status" in self._links else None
        if view is None or now - self._looked_at_job > JOB_SECONDS:
            self._looked_at_job = now
            view = await self._by_job() or view
        return view or await self._by_asking()

    async def _by_link(self) -> View | None:
        """The record; None if the link does not show it any more."""
        response = await self._fetch(self._links["status"])
        known = self._tracker.view
        if response is None or response.status_code not in (200, 304):
            self._links.pop("status", None)
            return None
        if response.status_code == 200:
            self._tags[self._links["status"]] = response.headers.get("ETag", "")
            known = View.model_validate_json(response.content)
        age = _age(response)
        if known is not None and not known.ended and age is not None and age > LEASE_SECONDS:
            known = known.model_copy(update={"status": "interrupted", "resumable": True})
        return known

    async def _by_job(self) -> View | None:
        """The view in the RunPod job's output; None if the job shows none."""
        if self._job_id is None:
            return None
        job = await self._runs.job(self._job_id)
        self._job = job or Job(self._job_id, "EXPIRED")
        output = self._job.output
        if isinstance(output, dict) and output.get("process_id") == self._id:
            return self._read(output)
        if self._revision or not self._runs.shows_progress:
            return None
        waiting = View(process_id=self._id, status="queued", phase="queued", source="platform")
        if self._called_off:  # no worker had taken it
            return waiting.model_copy(update={"status": "cancelled"})
        return waiting if self._job.active else None

    async def _by_asking(self) -> View:
        request: Reply = {"action": "process_status", "process_id": self._id}
        if not self._asks.shows_progress and self._revision:
            request["since_revision"] = self._revision
            request["wait_seconds"] = LONG_POLL_SECONDS
        view = self._read(await self._asks.ask(request, low_priority=True))
        if view.status != "not_found":
            return view
        job = self._job
        if job is None:
            return view
        if job.active and self._runs.shows_progress:
            job = self._job = await self._runs.job(job.id) or Job(job.id, "EXPIRED")
        elif job.active:
            job = await self._runs.job(job.id) or job
        if job.error is not None:
            raise error_of(job.error)
        return view.model_copy(update={"status": "queued", "source": "platform"})

    def _read(self, reply: Reply) -> View:
        view = View.model_validate(reply)
        # Links to a file would be read on this machine, which need not be the worker's.
        web = {name: url for name, url in view.links.items() if url.startswith(("http:", "https:"))}
        self._links = web or self._links
        return view

    async def _held(self) -> bool:
        """Whether the platform still has a job that will carry the process on."""
        if self._job_id is None:
            return False
        self._job = await self._runs.job(self._job_id) or Job(self._job_id, "EXPIRED")
        return self._job.active

    async def _fetch(self, url: str) -> httpx.Response | None:
        tag = self._tags.get(url)
        headers = {"If-None-Match": tag} if tag else {}
        with suppress(EndpointUnreachable):  # another source may answer
            return await send(self._http, "GET", url, headers=headers)
        return None

    # ---- the log

    async def _new_lines(self, view: View) -> list[Logged]:
        if view.revision == 0:
            return []
        if "log" in self._links:
            return await self._lines_by_link(view.attempt)
        if self._asks.shows_progress and not view.ended:
            return []  # a request a look would be too many
        return await self._lines_by_asking()

    async def _lines_by_link(self, attempt: int) -> list[Logged]:
        response = await self._fetch(self._links["log"])
        if response is None or response.status_code != 200:
            return []
        self._tags[self._links["log"]] = response.headers.get("ETag", "")
        seen = self._log_place[1] if self._log_place[0] == attempt else 0
        lines = lines_after(response.text, attempt, seen)
        if lines:
            self._log_place = (attempt, lines[-1].number)
        return lines

    async def _lines_by_asking(self) -> list[Logged]:
        attempt, number = self._log_place
        cursor: Any = f"{attempt}:{number}" if attempt else 0
        lines: list[Logged] = []
        while cursor is not None:
            request = {"action": "logs", "process_id": self._id, "cursor": cursor}
            reply = await self._asks.ask(request, low_priority=True)
            page = page_of_lines(reply)
            if page:
                lines += page
                self._log_place = (page[-1].attempt, page[-1].number)
            following = reply.get("next_cursor")
            cursor = following if following != cursor and page else None
        return lines


def page_of_lines(reply: Reply) -> list[Logged]:
    """The lines of a reply of `logs`."""
    first, attempt = reply.get("first_line") or 1, reply["attempt"]
    left_out = reply.get("left_out", 0)
    return [
        Logged(attempt, first + index, line, left_out if index == 0 else 0)
        for index, line in enumerate(reply["lines"])
    ]


def _age(response: httpx.Response) -> float | None:
    """Seconds since the object was written, by the store's own clock; None if it does not say."""
    try:
        now = parsedate_to_datetime(response.headers["Date"])
        return (now - parsedate_to_datetime(response.headers["Last-Modified"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
