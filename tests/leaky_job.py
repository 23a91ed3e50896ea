"""Kinds that tell all they know. Started in place of `-m jobs`, as `unruly_jobs.py` is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import BaseModel, JsonValue, SecretStr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jobs.__main__
from child.context import JobContext
from jobs import JOBS, Job


class Params(BaseModel, extra="forbid"):
    """Two secrets: one that says so, one that is only named so."""

    token: SecretStr
    hf_token: str
    note: str = ""


def tell(context: JobContext, params: Params) -> JsonValue:
    """In the log, in progress and in the result."""
    known = [params.token.get_secret_value(), params.hf_token]
    known += [os.environ["PLANTED_TOKEN"], os.environ["PLAIN_NAME"]]
    for secret in known:
        sys.stdout.write(f"I know {secret}, and say so\n")
        sys.stderr.write(f"again: {secret}\n")
    context.progress(1, 2, message=f"still {known[0]}", **{f"loss of {known[1]}": 1.0})
    return {"told": known, "token": known[1]}


def fail(context: JobContext, params: Params) -> JsonValue:
    """In an exception, too."""
    raise ValueError(f"cannot go on: {tell(context, params)}")


KINDS = {"tell": Job(Params, tell), "fail": Job(Params, fail)}

if __name__ == "__main__":
    JOBS.update(KINDS)
    jobs.__main__.main()
