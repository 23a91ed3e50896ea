"""`python -m podjobs` is the command `podjobs`."""

from podjobs.cli import main

main()
