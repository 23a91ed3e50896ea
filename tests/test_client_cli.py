"""The command `podjobs` as a person runs it, against a real worker under the SDK's loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.endpoint import Endpoint

pytestmark = pytest.mark.parametrize("place", ["local"], indirect=True)


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Commands:
    """Runs `podjobs`, with the endpoint and the key in its environment."""

    def __init__(self, endpoint: Endpoint, home: Path) -> None:
        plane = endpoint.plane
        self._home = home
        self._env = {
            **os.environ,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "XDG_STATE_HOME": str(home),
            "PODJOBS_ENDPOINT": f"{plane.url}/v2/{plane.endpoint}",
            "RUNPOD_API_KEY": plane.api_key,
        }

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "podjobs",
            *arguments,
            cwd=self._home,
            env=self._env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def end(self, process: asyncio.subprocess.Process) -> Done:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    async def __call__(self, *arguments: str) -> Done:
        return await self.end(await self.begin(*arguments))


@pytest.fixture
def podjobs(endpoint: Endpoint, tmp_path: Path) -> Callable[..., Awaitable[Done]]:
    home = tmp_path / "home"
    home.mkdir()
    return Commands(endpoint, home)


async def test_run_leaves_verified_results_and_the_same_id_attaches(endpoint, podjobs, tmp_path):
    params = ["-p", "seconds=0", "-p", "steps=1", "-p", "artifacts=2"]
    command = ["run", "sleep", *params, "--id", "mine", "--out", "out"]
    async with endpoint.worker("w1"):
        first = await podjobs(*command)
        again = await podjobs(*command)

    out = tmp_path / "home" / "out"
    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert sorted(first.out.split()) == sorted(f"out/{path.name}" for path in out.iterdir())
    assert "2 verified by sha256" in first.err
    starts = [job for job in endpoint.plane.jobs.values() if job.input["action"] == "start"]
    assert len(starts) == 1


async def test_ctrl_c_detaches_and_the_process_goes_on(endpoint, podjobs):
    async with endpoint.worker("w1"):
        running = await podjobs.begin("run", "sleep", "-p", "seconds=600", "--id", "mine")
        await endpoint.running("mine")
        running.send_signal(signal.SIGINT)
        detached = await podjobs.end(running)

        assert detached.code == 130
        assert "podjobs watch mine" in detached.err
        assert (await endpoint.record("mine")).status == "running"
        assert (await podjobs("cancel", "mine")).out == "mine cancelled\n"
        assert (await podjobs("watch", "mine")).code == 3


async def test_a_failed_job_is_exit_code_1_with_its_reason(endpoint, podjobs):
    async with endpoint.worker("w1"):
        done = await podjobs("run", "sleep", "-p", "seconds=0", "-p", "fail_at=1")

    assert done.code == 1
    assert "job_error" in done.err


async def test_json_is_one_object_a_line_on_standard_output_alone(endpoint, podjobs):
    async with endpoint.worker("w1"):
        run = await podjobs("run", "sleep", "-p", "seconds=0", "--id", "mine", "--json")
        rows = await podjobs("ps", "--json")

    types = [json.loads(line)["type"] for line in run.out.splitlines()]
    assert types[0] == "status"
    assert [json.loads(line)["process_id"] for line in rows.out.splitlines()] == ["mine"]
