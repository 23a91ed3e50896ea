"""The params of a declared program: from a small table of the operator's to a pydantic model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import SchemaError

from child.names import relative
from programs.placeholders import Declared, Value, as_text

#: A text that sets no limit of its own; one item of a command line takes 128 KiB at most.
TEXT_LIMIT = 16_384
#: A list that sets no limit of its own.
ITEMS_LIMIT = 256

_FITS = {
    "str": {"min_length", "max_length", "pattern", "secret"},
    "path": set[str](),
    "int": {"min", "max"},
    "float": {"min", "max"},
    "bool": set[str](),
    "choice": {"choices"},
    "list": {"items", "min_items", "max_items"},
}


class Param(Declared):
    """One param: its type, its limits, what it is for."""

    type: Literal["str", "path", "int", "float", "bool", "choice", "list"]
    description: str = ""
    default: Any = None
    #: May be null, and is if it is not given and has no default.
    optional: bool = False
    min: float | int | None = None
    max: float | int | None = None
    min_length: int | None = None
    max_length: int | None = Field(default=None, le=TEXT_LIMIT)
    pattern: str | None = None
    choices: tuple[str | int, ...] | None = None
    items: Param | None = None
    min_items: int | None = None
    max_items: int | None = Field(default=None, le=ITEMS_LIMIT)
    #: Shown to nobody, and never part of a command line.
    secret: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        common = {"type", "description", "default", "optional"}
        misplaced = self.model_fields_set - common - _FITS[self.type]
        if misplaced:
            raise ValueError(f"`{min(misplaced)}` has no meaning for the type {self.type}")
        if self.type == "choice" and not self.choices:
            raise ValueError("the type choice needs `choices`")
        if self.type == "list" and (self.items is None or self.items.type == "list"):
            raise ValueError("the type list needs `items`, a table with a type that is no list")
        if self.secret and (self.pattern or self.default):
            raise ValueError("a secret has neither a pattern nor a default")
        self._check_default()
        return self

    @property
    def nullable(self) -> bool:
        return self.optional and self.default is None

    def annotation(self, *, no_dash: bool = False) -> Any:
        """Its type for pydantic. `no_dash`: its value must not begin with a `-`."""
        if self.type == "list":
            assert self.items is not None
            # what a list spreads into are items of their own
            inner = self.items.annotation(no_dash=no_dash)
            limits = Field(min_length=self.min_items, max_length=self.max_items or ITEMS_LIMIT)
            return Annotated[list[inner], limits]  # type: ignore[valid-type] # made here
        plain = self._plain()
        return Annotated[plain, AfterValidator(_no_dash)] if no_dash else plain

    def _plain(self) -> Any:
        length = Field(min_length=self.min_length, max_length=self.max_length or TEXT_LIMIT)
        limits = Field(ge=self.min, le=self.max)
        match self.type:
            case "str" if self.secret:
                return Annotated[SecretStr, length, AfterValidator(_secret_text)]
            case "str":
                pattern = Field(pattern=self.pattern)
                return Annotated[str, length, pattern, AfterValidator(_text)]
            case "path":
                return Annotated[str, Field(max_length=1024), AfterValidator(relative)]
            case "choice":
                return Literal[self.choices]
            case "int":
                return Annotated[int, limits, BeforeValidator(partial(_number, int))]
            case "float":
                number = BeforeValidator(partial(_number, float))
                return Annotated[float, limits, Field(allow_inf_nan=False), number]
            case _:
                return bool

    def _check_default(self) -> None:
        if self.type in ("int", "float") and isinstance(self.default, str):
            raise ValueError("its default: must be a number, not a text")
        try:
            type_of_it = TypeAdapter(self.annotation(), config=ConfigDict(strict=True))
            if self.default is not None:
                type_of_it.validate_python(self.default)
        except SchemaError:
            raise ValueError("`pattern` is no regular expression that can be used here") from None
        except ValidationError as error:
            raise ValueError(f"its default: {error.errors()[0]['msg']}") from None


def params_model(
    name: str, params: Mapping[str, Param], leading: frozenset[str]
) -> type[BaseModel]:
    """The model of all params of one program; those `leading` must not begin with a `-`."""
    fields: dict[str, Any] = {}
    for each, param in params.items():
        annotation = param.annotation(no_dash=each in leading)
        missing = param.default if param.default is not None or param.optional else ...
        if param.optional:
            annotation = annotation | None
        fields[each] = (annotation, Field(missing, description=param.description or None))
    config = ConfigDict(extra="forbid", frozen=True, strict=True)
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model


def plain_values(params: BaseModel) -> dict[str, Value]:
    """The params as a template takes them, secrets unmasked."""
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in params
    }


def _number(number: type[int | float], value: Any) -> Any:
    """`value`, read as a number where it is written as a text: the kinds take both."""
    if isinstance(value, str):
        with suppress(ValueError):
            return number(value)
    return value


def _text(text: str) -> str:
    """One that any program can be given. Raises ValueError."""
    if "\0" in text:
        raise ValueError("must not hold a NUL")
    if not _can_be_encoded(text):
        raise ValueError("must be valid Unicode")
    return text


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _secret_text(secret: SecretStr) -> SecretStr:
    _text(secret.get_secret_value())
    return secret


def _no_dash(value: Any) -> Any:
    if as_text(value).startswith("-"):
        raise ValueError("must not begin with `-`: the program would take it for an option")
    return value
