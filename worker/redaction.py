"""What is secret, found in texts and values and taken out before anybody else sees them.

Two ways to know a secret: by its place (a field or variable that is named like one, a parameter of
a presigned link, an `Authorization` header, the shape of a well-known token), and by its value,
once it was seen in such a place. The second is what finds a key that a job prints by mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final, Self
from urllib.parse import quote, quote_plus

from pydantic import JsonValue

MASK: Final = "[redacted]"
#: What pydantic shows of a `SecretStr`.
MASKED_BY_PYDANTIC: Final = "**********"
#: Fields of replies that hold presigned URLs: with temporary credentials, their token is in there.
LINKS: Final = frozenset({"url", "urls", "links"})
#: Fields of replies that the caller needs as they are, for the next request or to check bytes: ids,
#: paths, cursors, hashes, base64.
VERBATIM: Final = frozenset(
    {
        "process_id",
        "path",
        "filename",
        "folder",
        "folders",
        "kind",
        "worker_id",
        "next_cursor",
        "upload_id",
        "sha256",
        "file_sha256",
        "data",
    }
)
#: In replies a value counts as a secret from this length, and if it is no plain word: a variable
#: that is named like a secret may hold `runpod` or `changeme`.
REPLY_MIN_LENGTH: Final = 8
_PLAIN_WORD: Final = re.compile(r"[A-Za-z]{1,15}|[0-9]{1,11}")
#: A shorter value is found in too many innocent texts to be looked for.
MIN_LENGTH: Final = 6
#: A longer one is looked for by its beginning: what follows would not give it away.
MAX_LENGTH: Final = 4096

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_SECRET_WORDS = {
    "password",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "credential",
    "credentials",
    "authorization",
    "apikey",
    "cookie",
}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("signing", "key")}
#: `..._token` is a secret, but for these, which language and diffusion models call so.
_MODEL_TOKENS = {
    "bos",
    "eos",
    "pad",
    "unk",
    "sep",
    "cls",
    "mask",
    "trigger",
    "instance",
    "placeholder",
    "per",
    "image",
    "start",
    "end",
    "new",
    "special",
    "next",
    "class",
}

#: A search takes time that is linear in the length of the text: a part that repeats has a small
#: bound, or no match of the same part can begin within it. So a JSON web token, whose parts may
#: hold `-`, begins after a character that no part holds, and not at a `\b`.
_PLACES = re.compile(
    r"""
      (?P<param>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId
        |sig|token|access_token|api_?key|key|password|secret)=)[^&\s"'<>\\]+
    | (?P<login>\b[a-z][a-z0-9+.-]{0,20}://)[^/\s@"'<>]{1,1000}@
    | (?P<bearer>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}
    | (?P<named>(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key
        |(?:access|auth|hf|bearer|session|refresh)[_-]token)["']?\s{0,3}[:=]\s{0,3}["']?)
        (?![\d.]+\b)[^\s"',;&}\])]{4,}
    | (?P<shape>)(?:\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}|\brpa_[A-Za-z0-9]{20,}
        |\bgh[pousr]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abp]-[A-Za-z0-9-]{10,}
        |(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]+
        |-----BEGIN[ A-Z]{0,20}PRIVATE\ KEY-----[^-]*(?:-----END[ A-Z]{0,20}PRIVATE\ KEY-----)?)
    """,
    re.VERBOSE | re.IGNORECASE,
)
#: A text without any of these holds no place; most lines of a log do not, and cost little.
_HINTS = (
    "://",
    "=",
    "bearer",
    "basic",
    "passw",
    "passphrase",
    "secret",
    "key",
    "token",
    "akia",
    "asia",
    "hf_",
    "rpa_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "sk-",
    "xox",
    "eyj",
)


class Redactor:
    """Takes secrets out: those in known places, and the values it was told."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = frozenset(value for value in values if len(value) >= MIN_LENGTH)
        self._forms = _sorted_forms(self._values)
        certain = [value for value in self._values if _is_certain(value)]
        self._reply_forms = _sorted_forms(certain)

    def knowing(self, values: Iterable[str]) -> Self:
        """One that also knows these."""
        return type(self)(self._values.union(values))

    def text(self, text: str) -> str:
        """`text` without secrets, as a person may see it."""
        text = _without(self._forms, text)
        might = any(map(text.lower().__contains__, _HINTS))
        return _PLACES.sub(_mask_place, text) if might else text

    def reply(self, value: JsonValue) -> JsonValue:
        """`value` without known secrets; links and VERBATIM fields in it stay whole."""
        match value:
            case str():
                return _without(self._reply_forms, value)
            case list():
                return [self.reply(each) for each in value]
            case dict():
                whole = LINKS | VERBATIM
                return {n: each if n in whole else self.reply(each) for n, each in value.items()}
            case _:
                return value

    def knows_part_of(self, text: str) -> bool:
        """Whether a value that counts in replies stands in `text`."""
        return any(form in text for form in self._reply_forms)

    def value(self, value: JsonValue) -> JsonValue:
        """`value` without secrets: its texts, and all that stands under a name like a secret's."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.value(each) for each in value]
            case dict():
                return self.fields(value)
            case _:
                return value

    def fields(self, fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """`value` of an object."""
        return {
            self.text(name): mask(each) if is_secret_name(name) else self.value(each)
            for name, each in fields.items()
        }


def is_secret_name(name: str) -> bool:
    """Whether what is called so is to be shown to nobody, as `hf_token` or `apiKey`."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if any(
        pair in _SECRET_PAIRS and words[at + 2 : at + 3] != ["id"]
        for at, pair in enumerate(pairwise(words))
    ):
        return True
    is_token = words[-1:] == ["token"] and not _MODEL_TOKENS.intersection(words)
    return is_token or not _SECRET_WORDS.isdisjoint(words)


def mask(value: JsonValue) -> JsonValue:
    """What is shown in the place of a secret. That there is none may be seen."""
    return value if value is None or isinstance(value, bool) or value == "" else MASKED_BY_PYDANTIC


def secrets_in(given: JsonValue, shown: JsonValue) -> Iterator[str]:
    """The texts of `given` that are masked in `shown`, which is made of it."""
    if shown == MASKED_BY_PYDANTIC:
        yield from _texts(given)
    elif isinstance(given, dict) and isinstance(shown, dict):
        for name, each in given.items():
            yield from secrets_in(each, shown.get(name))
    elif isinstance(given, list) and isinstance(shown, list):
        for each, as_shown in zip(given, shown, strict=False):
            yield from secrets_in(each, as_shown)


def environment_secrets(environment: Mapping[str, str], named: Iterable[str]) -> list[str]:
    """The values of variables that are named like secrets, and of those `named`."""
    listed = set(named)
    return [value for name, value in environment.items() if name in listed or is_secret_name(name)]


def _texts(value: JsonValue) -> Iterator[str]:
    match value:
        case str():
            yield value
        case int() | float():
            yield str(value)
        case list():
            for each in value:
                yield from _texts(each)
        case dict():
            for each in value.values():
                yield from _texts(each)


def _is_certain(value: str) -> bool:
    """Whether a value is so much like a secret that a reply must not hold it."""
    return len(value) >= REPLY_MIN_LENGTH and not _PLAIN_WORD.fullmatch(value)


def _sorted_forms(values: Iterable[str]) -> list[str]:
    """Longest first: one may be a part of another."""
    return sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)


def _without(forms: Iterable[str], text: str) -> str:
    for form in forms:
        text = text.replace(form, MASK)
    return text


def _forms(value: str) -> set[str]:
    """How `value` may stand in a text: as it is, in a URL, in JSON, and line by line."""
    value = value[:MAX_LENGTH]
    lines = [line for line in value.splitlines() if len(line) >= MIN_LENGTH]
    return {
        value,
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        json.dumps(value)[1:-1],
        *(lines if len(lines) > 1 else ()),
    }


def _mask_place(match: re.Match[str]) -> str:
    """The place stays, so that a reader sees what was there."""
    place = next(text for text in match.groups() if text is not None)
    return f"{place}{MASK}@" if match["login"] is not None else f"{place}{MASK}"
