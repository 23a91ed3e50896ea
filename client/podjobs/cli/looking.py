"""The commands that look at processes, at the endpoint and at its kinds."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from podjobs.cli.frame import PLAIN, Common, ProcessId, app, on_endpoint, text_of
from podjobs.cli.output import coloured, print_json, print_table, results
from podjobs.cli.schema import param_rows
from podjobs.endpoint import AsyncEndpoint
from podjobs.errors import InvalidRequest


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
            print_table(("FIELD", "VALUE"), [(name, text_of(each)) for name, each in shown.items()])
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
            print_table(("FIELD", "VALUE"), [(name, text_of(each)) for name, each in reply.items()])
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
                ("FIGURE", "VALUE"), [(name, text_of(each)) for name, each in figures.items()]
            )
        return 0

    return on_endpoint(common, use)


def _print_line(line: str, event: Any, common: Common) -> None:
    if common.json:
        print_json(event)
    else:
        results.print(line, markup=False)
