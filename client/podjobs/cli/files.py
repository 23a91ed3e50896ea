"""The commands that move files and delete processes, and `login`."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from podjobs.cli.bytes_bar import bytes_bar
from podjobs.cli.following import fetch
from podjobs.cli.frame import PLAIN, Common, ProcessId, app, on_endpoint
from podjobs.cli.output import notes, print_json, results, size_of
from podjobs.endpoint import AsyncEndpoint
from podjobs.errors import NotConfigured
from podjobs.local_files import find
from podjobs.profile import save_profile
from podjobs.uploads import Uploaded


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


async def _upload(
    endpoint: AsyncEndpoint, source: str, folder: str | None, *, overwrite: bool
) -> Uploaded:
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


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        notes.print("not a terminal: give --yes to confirm")
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
