"""The command `podjobs`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name; the exit code says how it went."""
    from podjobs.cli.app import run_command  # `import podjobs` stays quick

    sys.exit(run_command(sys.argv[1:]))
