"""What the arguments ask for: a worker on RunPod, a server on this machine, or one job by hand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

TEST_INPUT = "test_input.json"
#: How requests come in: from RunPod's queue, to the SDK's local server, or by hand.
WayIn = Literal["serverless", "api", "terminal"]

HELP = """\
A RunPod serverless worker for long GPU jobs. On RunPod it needs no arguments.

by hand:
  python rp_handler.py                    run ./test_input.json and show its progress
  python rp_handler.py --test_input '{"input": {"action": "kinds"}}'
                                          run one request
  python rp_handler.py --rp_serve_api     serve POST /runsync on http://localhost:8000
  python rp_handler.py doctor [--quick]   try out all that a worker needs; what to change
  python rp_handler.py clean --dry-run    tell what has expired; without --dry-run, remove it
"""
#: The SDK's own, each with a value; it checks them.
SDK_OPTIONS = ("--rp_log_level", "--rp_api_port", "--rp_api_concurrency", "--rp_api_host")
AFTER_HELP = """\
More options, of the RunPod SDK: --rp_log_level LEVEL, --rp_debugger, --rp_api_host HOST,
--rp_api_port PORT, --rp_api_concurrency N.
Everything else is set by environment variables, see README.md.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments that matter here; the SDK reads them again for itself."""
    parser = argparse.ArgumentParser(
        description=HELP,
        epilog=AFTER_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--test_input", type=_job, metavar="JSON", help="a job, with its `input`")
    parser.add_argument("--rp_serve_api", action="store_true", help="serve the local API")
    for option in SDK_OPTIONS:
        parser.add_argument(option, help=argparse.SUPPRESS)
    parser.add_argument("--rp_debugger", action="store_true", help=argparse.SUPPRESS)
    _add_commands(parser)
    return parser.parse_args(arguments)


def _add_commands(parser: argparse.ArgumentParser) -> None:
    """What is done at once and by hand, in place of a job. `command` is None without one."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="try out all that a worker needs")
    doctor.add_argument("--quick", action="store_true", help="ask neither the store nor torch")
    doctor.add_argument(
        "--lifecycle",
        action="store_true",
        help="print the rules to give to the bucket instead (JSON)",
    )
    clean = commands.add_parser("clean", help="remove what has expired, see WORKER_PROCESS_DAYS")
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be removed")


def job_by_hand(arguments: argparse.Namespace) -> Any:
    """The job of `--test_input`, or else of the file; ends the program if there is none."""
    if arguments.test_input is not None:
        return arguments.test_input
    try:
        return _job(Path(TEST_INPUT).read_bytes())
    except OSError as error:
        sys.exit(f"{TEST_INPUT}: {error.strerror}; give --test_input JSON, or see --help")
    except argparse.ArgumentTypeError as error:
        sys.exit(f"{TEST_INPUT}: {error}")


def _job(text: str | bytes) -> object:
    """Raises ArgumentTypeError."""
    with suppress(ValueError):
        job = json.loads(text)
        if isinstance(job, dict) and job.get("input") is not None:
            return job
    raise argparse.ArgumentTypeError(
        'takes a JSON object such as \'{"input": {"action": "kinds"}}\''
    )


def way_in_of(arguments: argparse.Namespace) -> WayIn:
    if arguments.rp_serve_api or os.environ.get("RUNPOD_REALTIME_PORT"):
        return "api"
    by_hand = arguments.test_input or "RUNPOD_WEBHOOK_GET_JOB" not in os.environ
    return "terminal" if by_hand else "serverless"
