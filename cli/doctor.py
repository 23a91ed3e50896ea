"""`python rp_handler.py doctor`: what this worker needs, tried out, and told to a person."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from health.checks import Examined, Finding, Verdict, worst
from health.examine import Examiner
from programs.declaration import Program, Programs, read_programs
from programs.placeholders import Value, fill_text, names_in
from retention.lifecycle import lifecycle_rules
from stores.open import open_store
from utils import WorkerError
from worker.meter import Meter
from worker.settings import Settings

#: How often a store that does not work is looked at before a worker gives itself up.
FITNESS_LOOKS, FITNESS_PAUSE_SECONDS = 3, 5.0
_SIGNS: dict[Verdict, str] = {"ok": "ok      ", "degraded": "degraded", "broken": "BROKEN  "}
_ENDS: dict[Verdict, str] = {
    "ok": "This worker can take jobs.",
    "degraded": "This worker can take jobs; mind what is degraded.",
    "broken": "This worker can do no job until that is mended.",
}


def doctor(settings: Settings, *, quick: bool = False, lifecycle: bool = False) -> int:
    """Print every finding and what to change; the exit code, 1 if the worker can do no job.

    `quick` asks neither the store nor torch. `lifecycle` prints the bucket's rules, and no more.
    """
    if lifecycle:
        _say(json.dumps(lifecycle_rules(settings), indent=2))
        return 0
    findings = asyncio.run(_find(settings, quick=quick))
    if programs := look_for_programs(read_programs(settings.programs)):
        findings = (*findings, programs)
    for finding in findings:
        _say(told(finding))
    _say(_ENDS[worst(findings)])
    return int(worst(findings) == "broken")


def told(finding: Finding) -> str:
    """One finding in a line, and what to do in another."""
    line = f"  {_SIGNS[finding.verdict]}  {finding.check:<8} {finding.message}"
    return f"{line}\n{'':21}-> {finding.next_step}" if finding.next_step else line


async def _find(settings: Settings, *, quick: bool) -> tuple[Finding, ...]:
    try:
        store = open_store(settings, Meter())
    except WorkerError as error:
        return (Finding("settings", "broken", str(error), "change the variables it names"),)
    try:
        examiner = Examiner(store, settings)
        if quick:
            return await examiner.examine_machine()
        return (await examiner.examine(deep=True)).findings
    finally:
        await store.close()


def look_for_programs(programs: Programs) -> Finding | None:
    """Whether the file of each declared program is there; None if none is declared."""
    if not programs.by_name:
        return None
    lost = [
        f"{name}: {path}"
        for name, program in programs.by_name.items()
        for path in _files_of(program)
        if shutil.which(path) is None and not Path(path).is_file()
    ]
    if lost:
        mend = "install them in the image, or correct `argv` in the file of WORKER_PROGRAMS"
        return Finding("programs", "degraded", f"not found: {', '.join(lost)}", mend)
    return Finding("programs", "ok", f"{len(programs.by_name)} declared, and their files are there")


def _files_of(program: Program) -> Iterator[str]:
    """The program itself, and each file beside the declarations that its command line names."""
    here: dict[str, Value] = {"python": sys.executable, "here": program.here}
    first, *others = program.argv
    assert isinstance(first, str)
    yield fill_text(first, here)
    for part in others:
        if isinstance(part, str) and part.startswith("{here}/") and names_in(part) == ["here"]:
            yield fill_text(part, here)


async def check_fitness(settings: Settings) -> None:
    """For the SDK, before the first job: a broken worker ends here and never takes one.

    With a store of its own: the SDK runs this in an event loop that ends before the worker's. A
    store that is away for a moment is waited for, as a start would.

    Raises:
        RuntimeError: it is broken; the sentence says why.
    """
    store = open_store(settings, Meter())
    try:
        examiner = Examiner(store, settings)
        broken = _broken(await examiner.examine())
        for _ in range(FITNESS_LOOKS - 1):
            if {finding.check for finding in broken} != {"store"}:
                break
            await asyncio.sleep(FITNESS_PAUSE_SECONDS)
            broken = _broken(await examiner.examine())
    finally:
        await store.close()
    if broken:
        raise RuntimeError("; ".join(f"{f.message} -> {f.next_step}" for f in broken))


def _broken(examined: Examined) -> list[Finding]:
    return [finding for finding in examined.findings if finding.verdict == "broken"]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
