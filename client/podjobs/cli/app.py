"""The commands, their arguments and their help."""

from __future__ import annotations

import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from podjobs import __version__
from podjobs.cli.bytes_bar import bytes_bar
from podjobs.cli.following import EXIT_CODES, INTERRUPTED_BY_KEY, fetch, follow, report
from podjobs.cli.output import (
    coloured,
    notes,
    print_error,
    print_json,
    print_table,
    results,
    size_of,
)
from podjobs.cli.schema import param_rows
from podjobs.endpoint import REMOTE_SOURCES, AsyncEndpoint, AsyncProcess, new_id
from podjobs.errors import InvalidRequest, NotConfigured, PodjobsError, ProcessEnded
from podjobs.local_files import find
from podjobs.profile import save_profile

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


def run_command(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        code = app(arguments, print_error=True, exit_on_error=False)
    except cyclopts.CycloptsError:
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED_BY_KEY
    except PodjobsError as error:
        print_error(error)
        return EXIT_CODES.get(error.view.status, 1) if isinstance(error, ProcessEnded) else 1
    return code if isinstance(code, int) else 0


def on_endpoint(common: Common, use: Callable[[AsyncEndpoint], Awaitable[int]]) -> int:
    """Open the endpoint, use it, close it."""

    async def opened() -> int:
        async with AsyncEndpoint(common.endpoint, control=common.control) as endpoint:
            return await use(endpoint)

    return asyncio.run(opened())


# ---- a job from start to end


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
        return EXIT_CODES[view.status]

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


# ---- looking


@app.command
def ps(
    *,
    status: Annotated[str | None, Parameter(help="Only processes of this status.")] = None,
    kind: Annotated[str | None, Parameter(help="Only processes of this kind.")] = None,
    limit: Annotated[int, Parameter(help="How many, newest first.")] = 50,
    common: Common = PLAIN,
) -> int:
    """List processes, newest first.

    Example: podjobs ps --status running
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        rows = await endpoint.processes(limit=limit, status=status, kind=kind)
        if common.json:
            for row in rows:
                print_json(row)
            return 0
        print_table(
            ("ID", "KIND", "STATUS", "CREATED"),
            [
                (
                    row.process_id,
                    row.kind,
                    coloured(row.status),
                    f"{row.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
                )
                for row in rows
            ],
        )
        return 0

    return on_endpoint(common, use)


@app.command
def status(process_id: ProcessId, *, common: Common = PLAIN) -> int:
    """Show a process as it is now.

    Example: podjobs status train-1 --json
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        view = await endpoint.process(process_id).status()
        if common.json:
            print_json(view)
        else:
            shown = view.model_dump(mode="json", exclude={"links"}, exclude_defaults=True)
            print_table(("FIELD", "VALUE"), [(name, _text(each)) for name, each in shown.items()])
        return 1 if view.status == "not_found" else 0

    return on_endpoint(common, use)


@app.command
def logs(
    process_id: ProcessId,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative=(), help="Go on until it ends.")
    ] = False,
    tail: Annotated[int, Parameter(help="How many of the newest lines.")] = 100,
    grep: Annotated[str | None, Parameter(help="Only lines that hold this text.")] = None,
    common: Common = PLAIN,
) -> int:
    """Print what a job printed.

    Example: podjobs logs train-1 -f --grep loss
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        process = endpoint.process(process_id)
        if follow:
            async for event in process.events(resume=False):
                if event.type == "log" and (grep is None or grep in event.line):
                    _print_line(event.line, event, common)
            return 0
        for line in await process.logs(tail=tail):
            if grep is None or grep in line.line:
                _print_line(line.line, line, common)
        return 0

    return on_endpoint(common, use)


# ---- files


@app.command
def get(
    process_id: ProcessId,
    pattern: Annotated[str | None, Parameter(help="A glob, e.g. 'samples/*'.")] = None,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for the files. Default: ./ID.")] = None,
    list: Annotated[  # noqa: A002 - the option's name
        bool, Parameter(negative=(), help="Only list the files.")
    ] = False,
    common: Common = PLAIN,
) -> int:
    """Fetch files of a process: in parallel, resumed, verified. Also while it runs.

    Example: podjobs get train-1 'samples/*' --out ./samples
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        process = endpoint.process(process_id)
        if not list:
            await fetch(process, out or Path(process_id), pattern, as_json=common.json)
            return 0
        for file in await process.files(pattern):
            if common.json:
                print_json(file)
            else:
                results.print(f"{size_of(file.size):>10}  {file.path}", markup=False)
        return 0

    return on_endpoint(common, use)


@app.command
def put(
    source: Annotated[str, Parameter(help="A folder, a file or a glob.")],
    *,
    folder: Annotated[
        str | None, Parameter(help="Name of the input folder. Default: named after the contents.")
    ] = None,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace files that differ.")] = False,
    common: Common = PLAIN,
) -> int:
    """Upload files into an input folder; send only what is missing there.

    Example: podjobs put ./photos --folder photos
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        uploaded = await _upload(endpoint, source, folder, overwrite=overwrite)
        if common.json:
            print_json(uploaded)
        else:
            results.print(f"folder:{uploaded.folder}", markup=False)
        return 0

    return on_endpoint(common, use)


@app.command
def rm(
    process_id: ProcessId,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative=(), help="Do not ask.")] = False,
    common: Common = PLAIN,
) -> int:
    """Delete a process that has ended, with all its files, for good.

    Example: podjobs rm train-1 --yes
    """
    if not yes and not _confirmed(f"Delete {process_id} with all its files?"):
        return 1

    async def use(endpoint: AsyncEndpoint) -> int:
        deleted = await endpoint.process(process_id).delete()
        if common.json:
            print_json({"process_id": process_id, "deleted": deleted})
        else:
            notes.print(f"deleted {deleted['objects']} objects, {size_of(deleted['bytes'])}")
        return 0

    return on_endpoint(common, use)


# ---- acting


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


# ---- the endpoint


@app.command
def kinds(
    kind: Annotated[str | None, Parameter(help="Show the params of this kind.")] = None,
    *,
    common: Common = PLAIN,
) -> int:
    """List the kinds of job, or the params of one with limits and defaults.

    Example: podjobs kinds train_diffusion
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        known = await endpoint.kinds()
        if kind is not None and kind not in known:
            raise InvalidRequest(f"there is no kind {kind!r}: there are {', '.join(known)}")
        if common.json:
            print_json(known if kind is None else known[kind])
        elif kind is None:
            rows = [(name, each.get("description", "")) for name, each in known.items()]
            print_table(("KIND", "DOES"), rows)
        else:
            print_table(("PARAM", "TYPE", "DEFAULT", "LIMITS", "MEANS"), param_rows(known[kind]))
        return 0

    return on_endpoint(common, use)


@app.command
def health(
    *,
    deep: Annotated[bool, Parameter(negative=(), help="Also test the store and the GPUs.")] = False,
    common: Common = PLAIN,
) -> int:
    """Show whether a worker and the store are well; exit code 1 if they are not.

    Example: podjobs health --deep
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        reply = await endpoint.health(deep=deep)
        if common.json:
            print_json(reply)
        else:
            print_table(("FIELD", "VALUE"), [(name, _text(each)) for name, each in reply.items()])
        return 0 if reply.get("status") in ("ready", "busy") else 1

    return on_endpoint(common, use)


@app.command
def metrics(*, common: Common = PLAIN) -> int:
    """Show what the workers have done.

    Example: podjobs metrics --json
    """

    async def use(endpoint: AsyncEndpoint) -> int:
        reply = await endpoint.metrics()
        if common.json:
            print_json(reply)
        else:
            figures = reply.get("all_workers") or reply["this_worker"]
            print_table(
                ("FIGURE", "VALUE"), [(name, _text(each)) for name, each in figures.items()]
            )
        return 0

    return on_endpoint(common, use)


@app.command
def login(
    *,
    key: Annotated[str | None, Parameter(help="RunPod API key. Default: asked for.")] = None,
    common: Common = PLAIN,
) -> int:
    """Save the API key and the endpoint for later commands, readable by you alone.

    Example: podjobs login --endpoint abc123 --control def456
    """
    secret = key or getpass.getpass("RunPod API key: ").strip()
    if not secret:
        raise NotConfigured("the key is empty", next_step="copy it from RunPod's console")
    place = save_profile(key=secret, endpoint=common.endpoint, control=common.control)
    notes.print(f"saved in {place}", markup=False)
    return 0


# ---- parts of commands


def _detachable(
    process_id: str, common: Common, use: Callable[[AsyncEndpoint], Awaitable[int]]
) -> int:
    """As `on_endpoint`; Ctrl-C leaves the process alone and says how to attach again."""
    try:
        return on_endpoint(common, use)
    except KeyboardInterrupt:
        where = f" --endpoint {common.endpoint}" if common.endpoint else ""
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
    return EXIT_CODES[view.status]


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


async def _upload(
    endpoint: AsyncEndpoint, source: str, folder: str | None, *, overwrite: bool
) -> Any:
    found = find(source)
    if found.ignored:
        notes.print(f"ignored: {', '.join(found.ignored[:5])}", markup=False)
    with bytes_bar("upload", sum(file.size for file in found.files)) as sent:
        uploaded = await endpoint.upload(source, folder=folder, overwrite=overwrite, sent=sent)
    notes.print(
        f"{uploaded.files} files, {size_of(uploaded.total_bytes)}; "
        f"sent {uploaded.sent_files} files, {size_of(uploaded.sent_bytes)}"
    )
    return uploaded


def _print_process(process: AsyncProcess, common: Common) -> None:
    if common.json:
        print_json({"process_id": process.id})
    else:
        results.print(process.id, markup=False)


def _print_line(line: str, event: Any, common: Common) -> None:
    if common.json:
        print_json(event)
    else:
        results.print(line, markup=False)


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


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        notes.print("not a terminal: give --yes to confirm")
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
