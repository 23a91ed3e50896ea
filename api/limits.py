"""How large a request may be, checked before anything is built from it.

RunPod lets bodies of 10 MB through, of 20 MB by `/runsync`. Validation and redaction take time for
each value and character; unchecked, one request would stop the event loop for seconds.
"""

from __future__ import annotations

from itertools import chain
from typing import Final, NamedTuple

from api.actions import MAX_ENTRIES, MAX_FILES
from api.parsing import InvalidRequest
from inputs.folder_files import CHUNK_BYTES

#: Fields of a request; no action has half as many.
MAX_FIELDS: Final = 64
MAX_DEPTH: Final = 32
#: Characters of a field's name, or of a name in `params`.
MAX_NAME: Final = 4096


class Limits(NamedTuple):
    """What a request may hold in all, and each of its texts."""

    #: Objects, lists, texts, numbers, ...
    values: int
    #: Characters, names included.
    text: int
    #: Characters of one text. The search for secrets holds the interpreter for 11 ms at this size.
    one_text: int


USUAL: Final = Limits(values=10_000, text=1 << 20, one_text=1 << 15)
#: Thousands of files, or a chunk in base64; neither is searched for secrets.
UPLOAD: Final = Limits(values=8 * MAX_FILES, text=20_000_000, one_text=4 * (CHUNK_BYTES // 3 + 1))
#: A larger request is read in a thread: in 2 ms the event loop can do other work.
SMALL: Final = Limits(values=300, text=1 << 13, one_text=1 << 13)


class Size(NamedTuple):
    """What a request holds."""

    values: int
    text: int

    @property
    def small(self) -> bool:
        """Whether it is read fast enough for the event loop."""
        return self.values <= SMALL.values and self.text <= SMALL.text


def check_size(request: object) -> Size:
    """The size of a job's `input`. Stops at the first limit that is exceeded.

    Raises:
        InvalidRequest: it is too large.
    """
    limits = USUAL
    if isinstance(request, dict):
        _check_fields(request)
        limits = UPLOAD if request.get("action") == "upload" else USUAL
    size, level = Size(0, 0), [request]
    for _ in range(MAX_DEPTH):
        size, level = _below(level, size, limits)
        if not level:
            return size
    raise InvalidRequest(f"the request is nested deeper than {MAX_DEPTH} levels")


def _check_fields(request: dict[str, object]) -> None:
    if len(request) > MAX_FIELDS:
        raise InvalidRequest(f"the request has {len(request)} fields; no action has so many")
    for name, most in MAX_ENTRIES.items():
        field = request.get(name)
        if isinstance(field, dict | list) and len(field) > most:
            raise InvalidRequest(f"`{name}` has {len(field)} entries; at most {most} are taken")


def _below(level: list[object], so_far: Size, limits: Limits) -> tuple[Size, list[object]]:
    """The size with the values of `level`, and the values that lie directly in them."""
    objects = [value for value in level if isinstance(value, dict)]
    lists = [value for value in level if isinstance(value, list)]
    values = so_far.values + len(level)
    if values + sum(map(len, objects)) + sum(map(len, lists)) > limits.values:
        raise _too_much(f"more than {limits.values} values")
    names = [str(name) for each in objects for name in each]
    texts = [value for value in level if isinstance(value, str)]
    for found, most in ((names, MAX_NAME), (texts, limits.one_text)):
        if (longest := max(map(len, found), default=0)) > most:
            raise _too_much(f"a text of {longest} characters, more than {most}")
    text = so_far.text + sum(map(len, names)) + sum(map(len, texts))
    if text > limits.text:
        raise _too_much(f"texts of more than {limits.text} characters")
    below = [value for each in objects for value in each.values()]
    return Size(values, text), [*below, *chain.from_iterable(lists)]


def _too_much(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the request holds {what}: bring larger data as a file, by `upload` and `inputs`"
    )
