"""The command line's frame: the app, the options of every command, the way to the endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from podjobs import __version__
from podjobs.endpoint import AsyncEndpoint

app = cyclopts.App(
    name="podjobs",
    help="Run long GPU jobs on a RunPod endpoint: upload, start, follow, download, verify.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    endpoint: Annotated[
        str | None,
        Parameter(help="RunPod endpoint id, or URL of a local twin or worker [PODJOBS_ENDPOINT]."),
    ] = None
    control: Annotated[
        str | None, Parameter(help="Endpoint that answers questions [PODJOBS_CONTROL].")
    ] = None
    json: Annotated[
        bool, Parameter(negative=(), help="Print JSON: one object, or one per line.")
    ] = False


PLAIN = Common()
ProcessId = Annotated[str, Parameter(help="The id of a process.")]


def on_endpoint(common: Common, use: Callable[[AsyncEndpoint], Awaitable[int]]) -> int:
    """Open the endpoint, use it, close it."""

    async def opened() -> int:
        async with AsyncEndpoint(common.endpoint, control=common.control) as endpoint:
            return await use(endpoint)

    return asyncio.run(opened())


def text_of(value: Any) -> str:
    """A value as a cell of a table."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
