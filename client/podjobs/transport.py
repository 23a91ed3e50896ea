"""How requests reach a worker: through RunPod's API, or straight to a worker's own server.

Both give the same: `ask` for an action that is answered at once, `submit` for a start that holds
its job, and `job` to look at that job. Replies are the worker's, errors are exceptions.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx

from podjobs.errors import (
    EndpointUnknown,
    EndpointUnreachable,
    KeyRefused,
    PlatformRefused,
    Unanswered,
    error_of,
)
from podjobs.retrying import NoAnswer, answered

Reply = dict[str, Any]
#: RunPod's API for the clients of an endpoint.
RUNPOD_API = "https://api.runpod.ai/v2"
#: States of a RunPod job that is not over.
ACTIVE = frozenset({"IN_QUEUE", "IN_PROGRESS"})
#: A request that only waits for a free worker is given this many seconds.
ASK_SECONDS = 300.0
#: RunPod holds /runsync open for this long; a job that takes longer is polled.
RUNSYNC_SECONDS = 60.0
#: Between two looks at a job that is being waited for.
POLL_SECONDS = 1.0
#: A worker's own server answers when the action is done, however long that takes.
HELD = httpx.Timeout(30.0, read=None)
QUICK = httpx.Timeout(30.0, read=60.0)


class Job(NamedTuple):
    """A RunPod job as /status shows it."""

    id: str
    status: str
    output: Any = None
    error: str | None = None

    @property
    def active(self) -> bool:
        """Whether a worker has it or will get it."""
        return self.status in ACTIVE


class Transport(Protocol):
    """The way to the workers of one endpoint."""

    #: Whether `job` shows the view of a start while it runs.
    shows_progress: bool

    async def ask(self, request: Reply, *, low_priority: bool = False) -> Reply:
        """The reply to one action.

        Raises:
            PodjobsError: the worker refused it, or no worker answered.
        """

    async def submit(self, request: Reply, policy: Reply) -> str:
        """Send a start; returns the id of the job that holds it."""

    async def job(self, job_id: str) -> Job | None:
        """The job now; None if the platform does not know it (any more)."""

    async def stop(self, job_id: str) -> None:
        """Take a job out of the platform's queue, if it is still there."""

    async def aclose(self) -> None:
        """Close connections."""


def transport_for(endpoint: str, key: str | None) -> Transport:
    """Choose by the endpoint: an id or a URL with `/v2/` is RunPod's API, another URL a worker's.

    Raises:
        KeyRefused: RunPod's API needs a key, and there is none.
    """
    if "://" not in endpoint:
        return RunPod(f"{RUNPOD_API}/{endpoint}", key)
    if "/v2/" in urlsplit(endpoint).path:
        return RunPod(endpoint.rstrip("/"), key)
    return WorkerServer(endpoint.rstrip("/"))


async def send(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    """One request, repeated while the network or the server fails. Returns any other answer.

    Raises:
        EndpointUnreachable: nothing answered, or only with temporary errors.
    """
    try:
        return await answered(lambda: client.request(method, url, **options))
    except NoAnswer as error:
        raise EndpointUnreachable(f"{urlsplit(url).netloc} does not answer ({error})") from None


class RunPod:
    """An endpoint behind RunPod's API, or behind a local twin of it."""

    shows_progress = True

    def __init__(self, url: str, key: str | None) -> None:
        if not key:
            raise KeyRefused("there is no API key: set RUNPOD_API_KEY or run `podjobs login`")
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(headers=headers, timeout=QUICK)
        self._url = url

    async def ask(self, request: Reply, *, low_priority: bool = False) -> Reply:
        body: Reply = {"input": request, "policy": {"executionTimeout": 3_600_000}}
        body["policy"]["ttl"] = 7_200_000
        if low_priority:
            body["policy"]["lowPriority"] = True
        answer = await self._call(
            "POST", f"/runsync?wait={RUNSYNC_SECONDS * 1000:.0f}", json=body, timeout=HELD
        )
        job = _job(answer)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ASK_SECONDS
        while job.status == "IN_PROGRESS" or (job.active and loop.time() < deadline):
            await asyncio.sleep(POLL_SECONDS)
            job = await self.job(job.id) or job._replace(status="EXPIRED")
        if job.active:
            await self.stop(job.id)
            raise Unanswered(f"no worker took the request within {ASK_SECONDS:.0f} s")
        return reply_of(job)

    async def submit(self, request: Reply, policy: Reply) -> str:
        answer = await self._call("POST", "/run", json={"input": request, "policy": policy})
        return str(answer["id"])

    async def job(self, job_id: str) -> Job | None:
        try:
            return _job(await self._call("GET", f"/status/{job_id}"))
        except EndpointUnknown:
            return None

    async def stop(self, job_id: str) -> None:
        await self._call("POST", f"/cancel/{job_id}")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, **options: Any) -> Reply:
        response = await send(self._client, method, f"{self._url}{path}", **options)
        if response.status_code in (401, 403):
            raise KeyRefused("RunPod refused the API key")
        if response.status_code == 404:
            raise EndpointUnknown("RunPod knows no such endpoint or job")
        if response.is_error:
            raise PlatformRefused(f"RunPod answered {response.status_code}: {_sentence(response)}")
        answer = _object(response)
        if answer is None:
            raise PlatformRefused("RunPod's answer is not a JSON object")
        return answer


class WorkerServer:
    """A worker that serves its own API: `python rp_handler.py --rp_serve_api`.

    It has no jobs: a start holds its request, which stays open here until the process ends.
    """

    shows_progress = False

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(timeout=HELD)
        self._url = url
        self._held: dict[str, asyncio.Task[Job]] = {}

    async def ask(self, request: Reply, *, low_priority: bool = False) -> Reply:
        del low_priority  # there is no queue
        return reply_of(await self._run(request))

    async def submit(self, request: Reply, policy: Reply) -> str:
        del policy  # there is no platform that would end it
        job_id = str(uuid.uuid4())
        self._held[job_id] = asyncio.create_task(self._run(request))
        return job_id

    async def job(self, job_id: str) -> Job | None:
        held = self._held.get(job_id)
        if held is None:
            return None
        if not held.done():
            return Job(job_id, "IN_PROGRESS")
        if held.cancelled() or held.exception() is not None:
            return None
        return held.result()

    async def stop(self, job_id: str) -> None:
        """Do nothing: the worker has taken the start already."""

    async def aclose(self) -> None:
        for held in self._held.values():
            held.cancel()
        await asyncio.gather(*self._held.values(), return_exceptions=True)
        await self._client.aclose()

    async def _run(self, request: Reply) -> Job:
        url = f"{self._url}/runsync"
        response = await send(self._client, "POST", url, json={"input": request})
        if response.is_error:
            raise PlatformRefused(
                f"the worker's server answered {response.status_code}: {_sentence(response)}"
            )
        answer = _object(response)
        if answer is None:
            raise PlatformRefused(f"{self._url} is not a worker's server")
        return _job(answer)


def reply_of(job: Job) -> Reply:
    """The reply in a finished job.

    Raises:
        PodjobsError: the worker or the platform refused the request.
    """
    if job.error is not None:
        raise error_of(job.error)
    if job.status != "COMPLETED" or not isinstance(job.output, dict):
        raise PlatformRefused(f"the platform ended the request: {job.status.lower()}")
    return job.output


def _job(answer: Reply) -> Job:
    error = answer.get("error")
    return Job(
        str(answer.get("id", "")),
        str(answer.get("status", "")),
        answer.get("output"),
        None if error is None else str(error),
    )


def _object(response: httpx.Response) -> Reply | None:
    try:
        answer = response.json()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _sentence(response: httpx.Response) -> str:
    """The sentence of an error answer, in at most a line."""
    answer = _object(response) or {}
    said = answer.get("error") or answer.get("detail") or response.text
    return " ".join(str(said).split())[:300]
