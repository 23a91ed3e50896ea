"""The programs that the operator declares for the kind `command`: read, checked, explained. Pure
but for the reading of one file. docs/programs.md explains every word of a declaration.
"""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from child.names import is_relative
from programs.params import Param, params_model
from programs.placeholders import (
    ArgvPart,
    Declared,
    When,
    leading_names,
    names_in,
    only_name,
    texts_in,
)

#: Folders of an attempt that a template or a pattern may name.
Base = Literal["work", "inputs", "outputs", "checkpoints"]
#: What else the worker fills in. `here` is the folder of the declarations' file.
BUILT_IN = ("work", "inputs", "outputs", "checkpoints", "config", "device", "python", "here")
#: A progress file may grow so large unless its declaration says otherwise, in bytes.
PROGRESS_FILE_LIMIT = 64 << 20

ProgramName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_ParamName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
#: What pydantic says of Python's types, in TOML's words.
_TOML_WORDS = (
    (r"^(?:Input|String|Tuple|List) should", "must"),
    (r"a valid (?:dictionary.*|mapping)", "a table"),
    (r"a valid (?:list|tuple)", "a list"),
    (r"a valid string", "a text in quotes"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid integer.*", "a whole number"),
    (r"a valid number.*", "a number"),
)
_PATTERN = re.compile(r"(?:\{(work|outputs|checkpoints)\}/)?([^{}]+)")


class ProgramsInvalid(Exception):
    """The file of declarations cannot be used; the sentence says where and why."""


class FilePlace(NamedTuple):
    """Where files are looked for: a folder of the attempt, and a glob whose `*` crosses `/`."""

    base: Base
    glob: str


def place_of(text: str) -> FilePlace:
    """What a declared path means. Raises ValueError for one that could lead elsewhere."""
    match = _PATTERN.fullmatch(text)
    if match is None or not is_relative(match[2]):
        raise ValueError(
            "must be a relative path or glob without `..`, perhaps after `{work}/`, `{outputs}/` "
            "or `{checkpoints}/`"
        )
    return FilePlace(match[1] or "work", match[2])  # type: ignore[arg-type] # one of the pattern's words


def _is_place(text: str) -> str:
    place_of(text)
    return text


_Path = Annotated[str, AfterValidator(_is_place)]


class Output(Declared):
    """Files that the program makes."""

    path: _Path
    #: Without a single one of them the program has failed.
    required: bool = True


class Checkpoints(Declared):
    """Files or folders, each of which the program can resume from."""

    path: _Path
    #: What has not changed for so long is finished.
    settle_seconds: float = Field(default=3.0, ge=0.1, le=600)
    #: What else a resumed program is to find in its place.
    along: tuple[_Path, ...] = ()


class ProgressSource(Declared):
    """How far the program is: from the lines it prints, or from a file of JSON lines."""

    lines: str | None = None
    file: _Path | None = None
    #: A file that grows larger fails the process.
    max_bytes: int = Field(default=PROGRESS_FILE_LIMIT, ge=1024, le=1 << 32)
    #: The param that holds the number of steps, where the program does not tell it.
    total: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.lines is None) == (self.file is None):
            raise ValueError("give `lines`, a regular expression, or `file`, of JSON lines")
        if self.lines is not None:
            try:
                groups = re.compile(self.lines).groupindex
            except re.error as error:
                raise ValueError(f"`lines` is no regular expression: {error}") from None
            if "step" not in groups:
                raise ValueError("`lines` needs a group (?P<step>...)")
        if self.file is not None and re.search(r"[*?\[]", self.file):
            raise ValueError("`file` is one file, no glob")
        return self


def _as_parts(value: Any) -> Any:
    """Lists as tuples: those are what a part of an argv is told apart by."""
    return (
        tuple(tuple(each) if isinstance(each, list) else each for each in value)
        if isinstance(value, list | tuple)
        else value
    )


class Program(Declared):
    """One declared program."""

    description: str = ""
    argv: Annotated[tuple[ArgvPart, ...], BeforeValidator(_as_parts)] = Field(min_length=1)
    #: Items to add when there is a checkpoint, at `{resume}`.
    resume: tuple[str, ...] = ()
    params: dict[_ParamName, Param] = Field(default={})
    config: dict[str, Any] | None = None
    config_format: Literal["yaml", "json"] = "yaml"
    env: dict[_Variable, str] = Field(default={})
    #: Variables that it also gets, of those that WORKER_CHILD_ENV lets jobs see.
    pass_env: tuple[_Variable, ...] = ()
    outputs: tuple[Output, ...] = ()
    checkpoints: Checkpoints | None = None
    progress: ProgressSource | None = None
    #: What asks it to save and end.
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"] = "SIGTERM"
    #: Absolute folders outside of its own that it may write to.
    writable: tuple[Annotated[str, StringConstraints(pattern=r"^/")], ...] = ()
    #: Whether it is held to those and its own. Without that it may write wherever the worker can.
    confine: bool = True
    #: The folder of the file that declares it; not for the operator to write.
    here: str = ""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        for name in self.params:
            if name in (*BUILT_IN, "resume") or hasattr(BaseModel, name):
                raise ValueError(f"`{name}` cannot be the name of a param")
        for where, text in self._templates():
            self._check_template(where, text)
        self._check_argv()
        if self.resume and self.checkpoints is None:
            raise ValueError("resume: there are no `checkpoints` to resume from")
        total = self.progress.total if self.progress else None
        if total is not None and (total not in self.params or self.params[total].type != "int"):
            raise ValueError("progress: `total` names a param of the type int")
        return self

    @property
    def uses_device(self) -> bool:
        return any("device" in names_in(text) for _, text in self._templates())

    def signal(self) -> signal.Signals:
        return signal.Signals[self.stop_signal]

    def params_model(self, name: str) -> type[BaseModel]:
        """The model of its params, called after it."""
        return params_model(name, self.params, frozenset(self._leading()))

    def _leading(self) -> Iterator[str]:
        """Params whose values would be options if they began with a `-`."""
        for part in (*self.argv, *self.resume):
            if part == "--":
                return
            for text in _texts_of(part):
                if text == "--":  # only for the rest of its group, which may be left out
                    break
                yield from (name for name in leading_names(text) if name in self.params)

    def _argv_texts(self) -> Iterator[str]:
        for part in self.argv:
            yield from _texts_of(part)

    def _templates(self) -> Iterator[tuple[str, str]]:
        """Every template with where it stands."""
        yield from (("argv", text) for text in self._argv_texts())
        yield from (("resume", text) for text in self.resume)
        yield from (("config", text) for text in texts_in(self.config or {}))
        yield from ((f"env.{name}", text) for name, text in self.env.items())

    def _check_argv(self) -> None:
        for part in self.argv:
            if isinstance(part, When) and part.when not in self.params:
                raise ValueError(f"argv: `when` names no param: `{part.when}`")
        first = self.argv[0]
        if not isinstance(first, str) or set(names_in(first)) - {"python", "here"}:
            raise ValueError("argv: the program itself does not depend on a param")

    def _check_template(self, where: str, text: str) -> None:
        names = names_in(text)
        known = self._known(where, text)
        in_folder = not {"work", "inputs", "outputs", "checkpoints", "here"}.isdisjoint(names)
        for name in names:
            if name not in known:
                raise ValueError(f"{where}: {_no_such('placeholder', name, known)}")
            if name in self.params:
                self._check_use(where, text, name, in_folder=in_folder)

    def _known(self, where: str, text: str) -> set[str]:
        """What a template may name. `resume` is null in a first attempt."""
        known = {*self.params, *BUILT_IN}
        if self.config is None or where == "config":
            known.remove("config")
        if where == "resume" or (where == "config" and only_name(text)):
            known.add("resume")
        return known

    def _check_use(self, where: str, text: str, name: str, *, in_folder: bool) -> None:
        param, alone = self.params[name], only_name(text) == name
        if in_folder and param.type in ("str", "list"):
            raise ValueError(f"{where}: `{name}` is part of a path, so its type must be `path`")
        if param.type == "list" and (not alone or where not in ("argv", "config")):
            raise ValueError(f"{where}: `{name}` is a list and must stand alone")
        if param.secret and where in ("argv", "resume"):
            raise ValueError(
                f"{where}: `{name}` is secret, and others see a command line: "
                "pass it in `config` or `env`"
            )
        if param.nullable and not (where == "config" and alone) and not self._in_group(text):
            raise ValueError(
                f"{where}: `{name}` may be null: put it into a list of items of its "
                "own, which is left out then"
            )

    def _in_group(self, text: str) -> bool:
        return any(isinstance(part, tuple) and text in part for part in self.argv)


def _texts_of(part: ArgvPart) -> tuple[str, ...]:
    match part:
        case str():
            return (part,)
        case When():
            return part.items
        case _:
            return part


class _File(Declared):
    programs: dict[ProgramName, Program]


class Programs:
    """All that are declared on this worker."""

    def __init__(self, programs: dict[str, Program]) -> None:
        self.by_name = programs
        self._models = {name: each.params_model(name) for name, each in programs.items()}

    def model(self, name: str) -> type[BaseModel]:
        """The model of a program's params. Raises KeyError."""
        return self._models[name]

    def declaration(self, params: Mapping[str, JsonValue]) -> JsonValue:
        """What the child is told of the program that the kind's `params` name."""
        declared: JsonValue = self.by_name[str(params["program"])].model_dump(
            mode="json", exclude_unset=True
        )
        return declared

    def schema(self) -> dict[str, JsonValue]:
        """The JSON schema of the params of the kind `command`: one form a program."""
        forms: list[JsonValue] = []
        for name, program in self.by_name.items():
            params = self._models[name].model_json_schema()
            required: list[JsonValue] = ["program"]
            forms.append(
                {
                    "type": "object",
                    "title": name,
                    "description": program.description,
                    "properties": {"program": {"const": name}, "params": params},
                    "required": [*required, *(["params"] if params.get("required") else [])],
                    "additionalProperties": False,
                }
            )
        return {
            "title": "Params",
            "description": "A declared program, and its params.",
            "oneOf": forms,
        }


def read_programs(path: Path | None) -> Programs:
    """The programs that a file declares; none without a file.

    Raises:
        ProgramsInvalid: it cannot be read, or a declaration is wrong.
    """
    if path is None:
        return Programs({})
    try:
        declared = tomllib.loads(path.read_text())
        here = str(path.resolve().parent)
        programs = _File.model_validate(declared).programs
        return Programs(
            {name: program.model_copy(update={"here": here}) for name, program in programs.items()}
        )
    except OSError as error:
        raise _invalid(path, error.strerror or "cannot be read") from None
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise _invalid(path, f"{where}: {_sentence(fault)}") from None
    except ValueError as error:  # not TOML, not UTF-8
        raise _invalid(path, str(error).splitlines()[0]) from None


def _invalid(path: Path, why: str) -> ProgramsInvalid:
    return ProgramsInvalid(f"WORKER_PROGRAMS: {path}: {why}")


def _sentence(fault: Any) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "is missing"
    sentence = str(fault["msg"]).removeprefix("Value error, ")
    for pydantics, ours in _TOML_WORDS:
        sentence = re.sub(pydantics, ours, sentence)
    return sentence


def _no_such(what: str, name: str, known: set[str]) -> str:
    from utils import did_you_mean  # a child has no use for it, nor for asyncio, which it brings

    return f"there is no {what} `{name}`{did_you_mean(name, sorted(known))}"
