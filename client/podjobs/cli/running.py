"""The commands that start, follow and stop a process."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from podjobs.cli.bytes_bar import bytes_bar
from podjobs.cli.following import INTERRUPTED_BY_KEY, exit_code, fetch, follow, report
from podjobs.cli.frame import PLAIN, Common, ProcessId, app, on_endpoint
from podjobs.cli.output import notes, print_json, results
from podjobs.endpoint import REMOTE_SOURCES, AsyncEndpoint, AsyncProcess, new_id
from podjobs.errors import InvalidRequest
from podjobs.local_files import find


@app.command
def run(
    kind: Annotated[str, Parameter(help="What to run; `podjobs kinds` lists them.")],
    *,
    param: Annotated[
        tuple[str, ...],
        Parameter(name=["--param", "-p"], negative=(), help="name=value, as often as needed."),
    ] = (),
    input: Annotated[  # noqa: A002 - the option's name
        tuple[str, ...],
        Parameter(name=["--input", "-i"], negative=(), help="name=PATH or name=SOURCE."),
    ] = (),
    label: Annotated[
        tuple[str, ...], Parameter(negative=(), help="name=value, to find it again.")
    ] = (),
    out: Annotated[Path | None, Parameter(help="Folder for the results. Default: ./ID.")] = None,
    id: Annotated[  # noqa: A002 - the option's name
        str | None, Parameter(help="Your name for the process; the same id attaches to it.")
    ] = None,
    timeout: Annotated[float | None, Parameter(help="Seconds that an attempt may take.")] = None,
    resume: Annotated[bool, Parameter(help="Send a start that was lost again.")] = True,
    detach: Annotated[bool, Parameter(negative=(), help="Return when the start is sent.")] = False,
    common: Common = PLAIN,
) -> int:
    """Upload what changed, start a job, follow it, download and verify its results.

    Ctrl-C detaches: the job goes on, and the command that attaches again is printed.
    Exit code: 0 completed, 1 failed, 3 cancelled, 130 detached by Ctrl-C.

    Example: podjobs run train_diffusion -i photos=./photos -p dataset=photos -p steps=1000
    """
    process_id = id or new_id(kind)
    params = {name: _value(text) for name, text in _pairs("--param", param)}
    inputs, labels = dict(_pairs("--input", input)), dict(_pairs("--label", label))

    async def use(endpoint: AsyncEndpoint) -> int:
        process = endpoint.process(process_id)
        if id is None or not await _is_there(process):
            process = await _start(endpoint, kind, process_id, params, inputs, labels, timeout)
        if detach:
            _print_process(process, common)
            return 0
        return await _to_the_end(process, out, common, resume=resume)

    return _detachable(process_id, common, use)


@app.command
def watch(
    process_id: ProcessId,
    *,
    logs: Annotated[bool, Parameter(help="Show the lines that the job prints.")] = True,
    common: Common = PLAIN,
) -> int:
    """Follow a process until it ends. Ctrl-C only stops watching.

    Example: podjobs watch train-1
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        process = endpoint.process(process_id)
        view = await follow(process, as_json=common.json, logs=logs, resume=False)
        report(view, as_json=common.json)
        return exit_code(view)

    return _detachable(process_id, common, use)


@app.command
def resume(
    process_id: ProcessId,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for the results. Default: ./ID.")] = None,
    common: Common = PLAIN,
) -> int:
    """Continue a process from its last checkpoint, then follow it as `run` does.

    Example: podjobs resume train-1
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        process = await endpoint.process(process_id).resume()
        return await _to_the_end(process, out, common, resume=True)

    return _detachable(process_id, common, use)


@app.command
def cancel(process_id: ProcessId, *, common: Common = PLAIN) -> int:
    """Stop a process, wherever it runs; returns when it is gone.

    Example: podjobs cancel train-1
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        view = await endpoint.process(process_id).cancel()
        if common.json:
            print_json(view)
        else:
            results.print(f"{process_id} {view.status}", markup=False)
        return 0 if view.ended else 1

    return on_endpoint(common, use)


# ---- parts of commands


def _detachable(
    process_id: str, common: Common, use: Callable[[AsyncEndpoint], Awaitable[int]]
) -> int:
    """As `on_endpoint`; Ctrl-C leaves the process alone and says how to attach again."""
    try:
        return on_endpoint(common, use)
    except KeyboardInterrupt:
        where = f" --endpoint {common.endpoint}" if common.endpoint else ""
        where += f" --control {common.control}" if common.control else ""
        notes.print(f"detached: {process_id} goes on", markup=False)
        notes.print(f"attach again:  podjobs watch {process_id}{where}", markup=False)
        notes.print(f"stop it:       podjobs cancel {process_id}{where}", markup=False)
        return INTERRUPTED_BY_KEY


async def _to_the_end(
    process: AsyncProcess, out: Path | None, common: Common, *, resume: bool
) -> int:
    """Follow, report, and fetch the files of whatever the process stored."""
    view = await follow(process, as_json=common.json, resume=resume)
    report(view, as_json=common.json)
    if view.artifacts.count:
        await fetch(process, out or Path(process.id), None, as_json=common.json)
    return exit_code(view)


async def _is_there(process: AsyncProcess) -> bool:
    """Whether the process is under way or complete, so that there is nothing to send."""
    if (await process.status()).status in ("queued", "running", "completed"):
        return True
    return await process.is_queued()


async def _start(
    endpoint: AsyncEndpoint,
    kind: str,
    process_id: str,
    params: dict[str, Any],
    inputs: dict[str, str],
    labels: dict[str, str],
    timeout: float | None,
) -> AsyncProcess:
    with bytes_bar("upload", _local_bytes(inputs)) as sent:
        return await endpoint.start(
            kind,
            inputs=inputs,
            params=params,
            process_id=process_id,
            labels=labels,
            timeout_seconds=timeout,
            sent=sent,
        )


def _local_bytes(inputs: dict[str, str]) -> int:
    """Bytes of the inputs that lie on this machine."""
    local = [source for source in inputs.values() if not source.startswith(REMOTE_SOURCES)]
    return sum(file.size for source in local for file in find(source).files)


def _print_process(process: AsyncProcess, common: Common) -> None:
    if common.json:
        print_json({"process_id": process.id})
    else:
        results.print(process.id, markup=False)


def _pairs(option: str, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """`name=value` of each text.

    Raises:
        InvalidRequest: one has no `=`.
    """
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InvalidRequest(f"{option} needs name=value")
    return [(name, value) for name, _, value in pairs]


def _value(text: str) -> Any:
    """A param: JSON if it is JSON (`3`, `true`, `[1, 2]`), else the text itself."""
    with suppress(ValueError):
        return json.loads(text)
    return text
