"""Runs one command and turns its outcome into an exit code."""

from __future__ import annotations

import cyclopts

from podjobs.cli import files, looking, running  # they add their commands to the app
from podjobs.cli.following import INTERRUPTED_BY_KEY, exit_code
from podjobs.cli.frame import app
from podjobs.cli.output import print_error
from podjobs.errors import PodjobsError, ProcessEnded

__all__ = ["app", "files", "looking", "run_command", "running"]


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
        return exit_code(error.view) if isinstance(error, ProcessEnded) else 1
    return code if isinstance(code, int) else 0
