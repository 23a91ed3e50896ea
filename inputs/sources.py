"""Where an input of a job comes from: what a caller writes, taken apart. Pure."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from child.names import relative
from inputs.errors import InputRefused
from storage import InvalidKey, check_key
from utils import OWN_PREFIXES, Sha256, WorkerError

#: Names of input folders, processes and inputs alike.
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
FORMS = (
    "`folder:NAME`, `folder:NAME/PATH`, `process:ID`, `process:ID/PATH`, `key:KEY`, or "
    "`https://...`"
)
#: Stands for the query of a URL in a record.
_CUT_OFF = "?..."


class InputInvalid(WorkerError):
    """An input's source is written in no form that this worker knows."""

    code = "invalid_request"


class Input(BaseModel, frozen=True, extra="forbid"):
    """One input, as a caller asks for it."""

    source: Annotated[
        str, Field(min_length=1, max_length=4096, description=f"Where it comes from: {FORMS}.")
    ]
    sha256: Annotated[
        Sha256 | None,
        Field(description="What its bytes must hash to. Only for a single file."),
    ] = None
    unpack: Annotated[
        bool, Field(description="It is a zip or tar; the job finds a folder in its place.")
    ] = False

    @property
    def identity(self) -> dict[str, str | bool]:
        """What makes two inputs the same request: where the bytes are known, not their place."""
        what = {"sha256": self.sha256} if self.sha256 else {"source": self.source}
        return {**what, "unpack": self.unpack}


class FromFolder(NamedTuple):
    """An input folder, or one file of it."""

    folder: str
    path: str | None


class FromProcess(NamedTuple):
    """What a process made, or one artifact of it."""

    process_id: str
    path: str | None


class FromKey(NamedTuple):
    """An object that the operator put where all callers may read: see `check_shared`."""

    key: str


class FromWeb(NamedTuple):
    """A URL; what it may name is `inputs.public_web`'s to say."""

    url: str


Source = FromFolder | FromProcess | FromKey | FromWeb


def parse_source(text: str) -> Source:
    """The source that `text` names.

    Raises:
        InputInvalid: it names none. The message does not repeat it: it may hold a secret.
    """
    scheme, _, rest = text.partition(":")
    match scheme.lower():
        case "folder":
            return FromFolder(*_name_and_path(rest))
        case "process":
            return FromProcess(*_name_and_path(rest))
        case "key":
            return FromKey(_operators_key(rest))
        case "https" | "http":
            return FromWeb(text)
        case _:
            raise InputInvalid(f"a source is one of {FORMS}")


def check_shared(key: str, prefixes: tuple[str, ...]) -> None:
    """Raises InputRefused if `key` lies below none of those that the operator opened to callers."""
    if not key.startswith(prefixes):
        below = ", ".join(f"`{prefix}`" for prefix in prefixes) or "none"
        raise InputRefused(f"`key:` names only keys below those of WORKER_INPUT_KEYS: {below}")


def is_whole(source: str) -> bool:
    """Whether a source that was `shown` still leads to its bytes."""
    return not source.endswith(_CUT_OFF)


def without_query(url: str) -> str:
    """Where it leads, without what may be secret, or made anew with every link."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def shown(source: str) -> str:
    """`source` as it may be kept and shown: a URL's query is often a key to what it names."""
    if not isinstance(parse_source(source), FromWeb):
        return source
    return without_query(source) + (_CUT_OFF if urlsplit(source).query else "")


def _name_and_path(rest: str) -> tuple[str, str | None]:
    name, slash, path = rest.partition("/")
    if not re.fullmatch(NAME, name):
        raise InputInvalid(
            "after `folder:` or `process:` comes a name, then perhaps `/` and a path"
        )
    return name, _path(path) if slash else None


def _path(path: str) -> str:
    try:
        return relative(path)
    except ValueError as error:
        raise InputInvalid(f"a path in a source {error}") from None


def _operators_key(key: str) -> str:
    if key.startswith(OWN_PREFIXES):
        raise InputInvalid(
            f"`key:` names what lies beside the worker's own folders ({', '.join(OWN_PREFIXES)}); "
            "for those use `folder:` or `process:`"
        )
    try:
        return check_key(key)
    except InvalidKey as error:
        raise InputInvalid(str(error)) from None
