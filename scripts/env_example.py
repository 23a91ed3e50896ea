"""Print `.env.example`, from `settings.Settings`: send it to the file of that name."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from worker.settings import Settings, names_of

HEAD = """\
Everything the worker may be told, for `docker run --env-file .env` and for an endpoint's variables.
Copy it to .env, which neither git nor an image takes in, and fill in what you need: with a bucket,
S3_BUCKET and the keys. What is commented out shows the default. An empty value is no value.
"""
#: The field that each group begins with.
GROUPS = {
    "bucket": "the store: a bucket, or else a folder",
    "data_dir": "this machine",
    "role": "what this worker takes on",
    "max_upload_bytes": "files that come in; sizes may be written as 20GiB",
    "secret_env": "running it",
    "process_days": "retention; unset keeps for ever",
    "heartbeat_seconds": "the protocol's times, in seconds; they fit each other as they are",
}


def example() -> str:
    """Each setting once, by its usual name, in the order in which `Settings` declares them."""
    lines = _comment(HEAD)
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            lines += ["", f"# ---- {GROUPS[name]}"]
        lines += ["", *_comment(str(field.description)), _assignment(names_of(name)[0], field)]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 100, initial_indent="# ", subsequent_indent="# ")


def _assignment(variable: str, field: FieldInfo) -> str:
    if field.default_factory is not None or field.default in (None, ""):
        return f"{variable}="
    default = field.default
    return f"#{variable}={default.human_readable() if isinstance(default, ByteSize) else default}"


if __name__ == "__main__":
    print(example())
