"""The HTTP of the double: routes, parsing, replies. What a request means stands in `control_plane`.

The worker's URLs are those that `ControlPlane.worker_env` hands out; the client's are documented.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

    from tests.control_plane import ControlPlane, Job

#: Bodies up to here are read before they are judged, so that a refusal is ours and is recorded.
READABLE_BYTES = 64_000_000


class Refused(Exception):
    """The request is answered with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def application(plane: ControlPlane) -> web.Application:
    """The routes; a client must show the key, a worker's key is not looked at."""

    @web.middleware
    async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.get("endpoint") not in (None, plane.endpoint):
            return web.json_response({"error": "endpoint not found"}, status=404)
        try:
            return await handler(request)
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)

    app = web.Application(middlewares=[refusals], client_max_size=READABLE_BYTES)
    client, worker = _ClientApi(plane), _WorkerApi(plane)
    app.add_routes(
        [
            web.post("/v2/{endpoint}/run", client.run),
            web.post("/v2/{endpoint}/runsync", client.runsync),
            web.get("/v2/{endpoint}/status/{job}", client.status),
            web.get("/v2/{endpoint}/stream/{job}", client.stream),
            web.post("/v2/{endpoint}/cancel/{job}", client.cancel),
            web.post("/v2/{endpoint}/retry/{job}", client.retry),
            web.get("/v2/{endpoint}/health", client.health),
            web.post("/v2/{endpoint}/purge-queue", client.purge),
            web.get("/v2/{endpoint}/job-take/{worker}", worker.take),
            web.get("/v2/{endpoint}/job-take-batch/{worker}", worker.take_batch),
            web.get("/v2/{endpoint}/job-stop/{worker}", worker.stops),
            web.post("/v2/{endpoint}/job-done/{worker}/{job}", worker.done),
            web.post("/v2/{endpoint}/job-stream/{worker}/{job}", worker.stream),
            web.get("/v2/{endpoint}/ping/{worker}", worker.ping),
        ]
    )
    return app


class _ClientApi:
    """What callers reach: parse, ask the plane, answer."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def run(self, request: web.Request) -> web.Response:
        job = await self._submit(request, sync=False)
        return web.json_response({"id": job.id, "status": job.status})

    async def runsync(self, request: web.Request) -> web.Response:
        """Answers when the job ends or, still in progress, when the wait is over."""
        job = await self._submit(request, sync=True)
        seconds = float(request.query.get("wait", self._plane.rules.runsync_wait * 1000)) / 1000
        await self._plane.wait(lambda: job.finished, seconds)
        return web.json_response(job.view())

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._job(request).view())

    async def stream(self, request: web.Request) -> web.Response:
        """The pieces that no earlier request has fetched."""
        job = self._job(request)
        pieces = list(job.chunks)
        job.chunks.clear()
        return web.json_response({"status": job.status, "stream": pieces})

    async def cancel(self, request: web.Request) -> web.Response:
        job = self._plane.cancel(self._job(request).id)
        return web.json_response({"id": job.id, "status": job.status})

    async def retry(self, request: web.Request) -> web.Response:
        job = self._plane.retry(self._job(request).id)
        return web.json_response({"id": job.id, "status": job.status})

    async def health(self, request: web.Request) -> web.Response:
        self._authorize(request)
        return web.json_response(self._plane.health())

    async def purge(self, request: web.Request) -> web.Response:
        self._authorize(request)
        return web.json_response({"removed": self._plane.purge(), "status": "completed"})

    async def _submit(self, request: web.Request, *, sync: bool) -> Job:
        self._authorize(request)
        rules = self._plane.rules
        body = await request.read()
        if len(body) > (rules.runsync_limit if sync else rules.run_limit):
            raise Refused(400, "the request is too large")
        try:
            sent = json.loads(body)
            job_input = sent["input"]
        except (ValueError, TypeError, KeyError):
            raise Refused(400, "the request needs a JSON object with `input`") from None
        return self._plane.submit(job_input, sync=sync, policy=sent.get("policy"))

    def _job(self, request: web.Request) -> Job:
        self._authorize(request)
        return _job_of(self._plane, request)

    def _authorize(self, request: web.Request) -> None:
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if shown != self._plane.api_key:
            raise Refused(401, "unauthorized")


class _WorkerApi:
    """What workers reach, at the URLs of `worker_env`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def take(self, request: web.Request) -> web.Response:
        jobs = await self._plane.take(request.match_info["worker"], 1, _connected(request))
        return web.json_response(_delivery(jobs[0])) if jobs else web.Response(status=204)

    async def take_batch(self, request: web.Request) -> web.Response:
        count = int(request.query["batch_size"])
        jobs = await self._plane.take(request.match_info["worker"], count, _connected(request))
        deliveries = [_delivery(job) for job in jobs]
        if jobs:
            deliveries = [*self._plane.odd_rows, *deliveries]
            self._plane.odd_rows.clear()
        return web.json_response(deliveries) if jobs else web.Response(status=204)

    async def stops(self, request: web.Request) -> web.Response:
        told = await self._plane.stops(request.match_info["worker"], _connected(request))
        return web.json_response({"jobsToStop": told}) if told else web.Response(status=204)

    async def done(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._plane.done(request.match_info["worker"], _job_of(self._plane, request), body)
        return web.json_response({})

    async def stream(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._plane.stream(request.match_info["worker"], _job_of(self._plane, request), body)
        return web.json_response({})

    async def ping(self, request: web.Request) -> web.Response:
        job_ids = [name for name in request.query.get("job_id", "").split(",") if name]
        self._plane.ping(request.match_info["worker"], job_ids)
        return web.json_response({})


def _job_of(plane: ControlPlane, request: web.Request) -> Job:
    job = plane.jobs.get(request.match_info["job"])
    if job is None or job.gone:
        raise Refused(404, "job not found")
    return job


def _delivery(job: Job) -> dict[str, Any]:
    return {"id": job.id, "input": job.input, "webhook": None}


def _connected(request: web.Request) -> Callable[[], bool]:
    """Is the client still there? A dead one must not be handed a job."""
    return lambda: request.transport is not None and not request.transport.is_closing()
