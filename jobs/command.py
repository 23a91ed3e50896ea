"""The kind `command`: run a program that the operator declares, such as a trainer of one's own."""

from __future__ import annotations

from jobs import Job
from programs.command import Params, run

KIND = Job(Params, run)
