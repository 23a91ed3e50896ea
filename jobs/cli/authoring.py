"""`python -m jobs`, for people: write a kind, run one by hand, set up what one needs.

The worker starts its children by the same command, with two numbers; they never come here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jobs import JOBS
from utils import did_you_mean

ROOT: Final = Path(__file__).resolve().parents[2]
#: Where runs by hand leave their files, below the folder that they are started in.
RUNS: Final = Path("runs")

HELP = """\
The kinds that `start` can run, by hand.

  python -m jobs list                     what there is
  python -m jobs new count_stars          write a kind that works, and its tests
  python -m jobs run sleep --params '{"seconds": 5, "steps": 50}'
                                          run a kind here, without a worker; Ctrl-C stops it
  python -m jobs prepare NAME             set up what a kind needs, while an image is built
"""


def command(arguments: list[str]) -> int:
    """Do what the arguments say; the program's exit code."""
    given = _parser().parse_args(arguments)
    match given.command:
        case "new":
            return _new(given.name)
        case "run":
            return _run(given)
        case "prepare":
            return _prepare(given)
        case _:
            return _list()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs",
        description=HELP,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the kinds, and what each does")
    new = commands.add_parser("new", help="write a commented kind with its tests")
    new.add_argument("name", help="of the kind, such as count_stars")
    run = commands.add_parser("run", help="run a kind as a plain program on this machine")
    prepare = commands.add_parser("prepare", help="set up what a kind needs once on a machine")
    for each in (run, prepare):
        each.add_argument("kind", type=_kind, metavar="NAME")
        each.add_argument(
            "--prepare-dir",
            type=Path,
            metavar="DIR",
            default=_prepare_dir(),
            help="where what is set up lies (default: $WORKER_PREPARE_DIR, else %(default)s)",
        )
    _add_run_options(run)
    return parser


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--params", type=_json, default={}, metavar="JSON", help="an object, or @FILE with one"
    )
    run.add_argument(
        "--inputs", type=_folder, metavar="DIR", help="what the job finds as its inputs, in place"
    )
    run.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help=f"where it works and leaves its outputs (default: ./{RUNS}/NAME-TIME)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --folder, or else in the newest run of the kind; "
        "give the same params and inputs again",
    )


def _new(name: str) -> int:
    from jobs.cli.new import NotWritten, write_kind

    try:
        written = write_kind(name, ROOT)
    except NotWritten as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path in written:
        sys.stdout.write(f"new: {path.relative_to(ROOT)}\n")
    sys.stdout.write(
        f"\nNow: python -m jobs run {name}\n     python -m pytest tests/test_{name}.py\n"
    )
    return 0


def _run(given: argparse.Namespace) -> int:
    from jobs.cli.local_run import RunPlace, run_kind

    folder = given.folder or _default_folder(given.kind, resume=given.resume)
    if folder is None:
        sys.stderr.write(f"There is no run of {given.kind} below ./{RUNS} to resume.\n")
        return 1
    declared = os.environ.get("WORKER_PROGRAMS")
    place = RunPlace(
        folder.resolve(),
        given.inputs,
        given.prepare_dir.resolve(),
        given.resume,
        Path(declared) if declared else None,
    )
    return run_kind(given.kind, JOBS[given.kind], given.params, place)


def _default_folder(kind: str, *, resume: bool) -> Path | None:
    """A new one; or the newest that there is, or None."""
    if resume:
        return max(RUNS.glob(f"{kind}-[0-9]*"), default=None)
    return RUNS / f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def _prepare(given: argparse.Namespace) -> int:
    from jobs.cli.local_run import prepare_kind

    return prepare_kind(given.kind, JOBS[given.kind], given.prepare_dir.resolve())


def _prepare_dir() -> Path:
    return Path(os.environ.get("WORKER_PREPARE_DIR") or RUNS / "prepared")


def _list() -> int:
    width = max(map(len, JOBS))
    for name, job in JOBS.items():
        sys.stdout.write(f"{name:{width}}  {job.sentence}\n")
    for sentence in JOBS.broken.values():
        sys.stderr.write(f"{sentence}\n")
    return 1 if JOBS.broken else 0


# ---- arguments


def _kind(name: str) -> str:
    if name in JOBS.broken:
        raise argparse.ArgumentTypeError(JOBS.broken[name])
    if name not in JOBS:
        hint = did_you_mean(name, JOBS) or "."
        raise argparse.ArgumentTypeError(f"no such kind{hint} There is {', '.join(JOBS)}.")
    return name


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return path.resolve()


def _json(text: str) -> object:
    """What the text, or the file behind `@`, says; what is wrong without repeating it."""
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else "not JSON"
        raise argparse.ArgumentTypeError(
            f"takes a JSON object, or @FILE with one: {what}"
        ) from None
