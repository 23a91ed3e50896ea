"""What an operator may declare, and what becomes of a caller's values. No program is run here."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from api.parsing import InvalidRequest, UnknownProgram, parse_params
from child.context import JobFailed
from programs.command import _yaml
from programs.declaration import Program, ProgramsInvalid, read_programs
from programs.params import plain_values
from programs.placeholders import fill_argv, fill_config
from programs.progress import PrintedLines, ProgressFile

EXAMPLES = Path(__file__).parent.parent / "examples" / "programs" / "programs.toml"
#: What a program can be given: no NUL, no half of a pair.
ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)
NASTY = [
    "$(touch /tmp/x)",
    "`id`",
    "a; rm -rf /",
    "quote \" and '",
    "line\nbreak",
    "- item",
    "a: b",
    "{braces}",
    "!!python/object/apply:os.system ['id']",
    "&anchor *alias",
    "# comment",
    "1e5",
    "yes",
    "null",
    "~",
    "0x10",
    "2026-01-01",
    "",
    " ",
    "\t",
    "\x85",
    "\ufeff",
    "| \n  block",
    "é",
    "😀",
    "%d",
]


def declared(tmp_path, toml):
    """The programs of a file with this text."""
    path = tmp_path / "programs.toml"
    path.write_text(toml)
    return read_programs(path)


def program(**fields):
    return Program.model_validate({"argv": ["x"], **fields})


def params(program, **given):
    return plain_values(program.params_model("p").model_validate(given))


# ---- values


@settings(deadline=None)  # a busy machine may take longer
@given(ANY_TEXT | st.sampled_from(NASTY))
def test_a_value_stays_one_item_of_the_command_line_whatever_is_in_it(text):
    parts = program(
        argv=["x", "--note={note}", "--", "{note}"], params={"note": {"type": "str"}}
    ).argv
    assert fill_argv(parts, {"note": text}) == ["x", f"--note={text}", "--", text]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("load", [yaml.safe_load, yaml.load])
def test_nasty_texts_come_out_of_a_yaml_file_as_they_went_in(text, load):
    config = fill_config({"a": ["{x}", {"b": "{x}"}]}, {"x": text})
    loader = {} if load is yaml.safe_load else {"Loader": yaml.FullLoader}
    assert load(_yaml(config), **loader) == {"a": [text, {"b": text}]}


@settings(deadline=None)  # a busy machine may take longer
@given(ANY_TEXT)
def test_any_text_comes_out_of_a_yaml_file_as_it_went_in(text):
    assert yaml.safe_load(_yaml({"a": text, "b": "after"})) == {"a": text, "b": "after"}


def test_every_text_in_a_yaml_file_is_quoted_so_that_no_yaml_reads_a_number():
    """YAML 1.1 takes 1e5 for a text and 1.2 for a number; `no` is the other way round."""
    assert _yaml({"a": "1e5", "b": "no"}) == '"a": "1e5"\n"b": "no"\n'


def test_values_in_a_config_have_their_own_types():
    template = {"n": "{n}", "f": "{f}", "b": "{b}", "l": "{l}", "none": "{none}", "text": "n={n}"}
    values = {"n": 3, "f": 0.5, "b": True, "l": [1, 2], "none": None}
    assert fill_config(template, values) == values | {"text": "n=3"}


def test_a_list_spreads_and_what_is_null_or_false_is_left_out():
    declared = program(
        argv=["x", "{sizes}", ["--lr", "{lr}"], {"when": "amp", "items": ["--amp"]}],
        params={
            "sizes": {"type": "list", "items": {"type": "int"}},
            "amp": {"type": "bool"},
            "lr": {"type": "float", "optional": True},
        },
    )
    values = params(declared, sizes=[1, 2], amp=False)
    assert fill_argv(declared.argv, values) == ["x", "1", "2"]
    values = params(declared, sizes=[], amp=True, lr=0.1)
    assert fill_argv(declared.argv, values) == ["x", "--lr", "0.1", "--amp"]


def test_braces_that_are_doubled_are_braces():
    assert fill_argv(program(argv=["x", "{{a}}"]).argv, {}) == ["x", "{a}"]


# ---- a caller's params


@pytest.mark.parametrize(
    ("param", "bad"),
    [
        ({"type": "int", "min": 1}, 0),
        ({"type": "int"}, "one"),
        ({"type": "int", "min": 1}, "0"),
        ({"type": "int"}, True),
        ({"type": "float", "max": 1}, 1.5),
        ({"type": "float"}, float("nan")),
        ({"type": "bool"}, "yes"),
        ({"type": "str", "max_length": 3}, "long"),
        ({"type": "str", "pattern": "^[a-z]+$"}, "A"),
        ({"type": "str"}, "a\0b"),
        ({"type": "str"}, "\ud800"),
        ({"type": "choice", "choices": ["a", "b"]}, "c"),
        ({"type": "list", "items": {"type": "int", "max": 3}}, [4]),
        ({"type": "path"}, "../secrets"),
        ({"type": "path"}, "/etc/passwd"),
        ({"type": "path"}, ""),
        ({"type": "str"}, None),
    ],
)
def test_a_param_outside_of_its_schema_is_refused(param, bad):
    with pytest.raises(ValidationError):
        params(program(params={"x": param}), x=bad)


@pytest.mark.parametrize(("kind", "value"), [("int", 3), ("float", 0.5)])
def test_a_number_may_be_written_as_a_text_as_it_may_for_a_kind(kind, value):
    taken = params(program(params={"x": {"type": kind}}), x=str(value))
    assert taken["x"] == value
    assert type(taken["x"]) is type(value)


@pytest.mark.parametrize(
    "argv",
    [
        ["x", "{v}"],
        ["x", ["--opt", "{v}"]],
        ["x", "{v}.txt"],
        ["x", "{empty}{v}"],
        ["x", {"when": "no", "items": ["--"]}, "{v}"],
        ["x", ["--", "{none}"], "{v}"],
    ],
)
def test_a_value_cannot_become_an_option(argv):
    others = {
        "empty": {"type": "str", "default": ""},
        "no": {"type": "bool", "default": False},
        "none": {"type": "str", "optional": True},
    }
    declared = program(argv=argv, params=others | {"v": {"type": "str"}})
    with pytest.raises(ValidationError, match="must not begin with `-`"):
        params(declared, v="--output=/etc")


def test_a_value_cannot_become_an_option_of_a_program_that_resumes():
    resuming = {"resume": ["{resume}", "{v}"], "checkpoints": {"path": "*.pt"}}
    declared = program(argv=["x"], params={"v": {"type": "str"}}, **resuming)
    with pytest.raises(ValidationError, match="must not begin with `-`"):
        params(declared, v="--output=/etc")
    declared = program(argv=["x", "--"], params={"v": {"type": "str"}}, **resuming)
    assert params(declared, v="-1")["v"] == "-1"


@pytest.mark.parametrize("argv", [["x", "--opt={v}"], ["x", "--", "{v}"], ["x", ["--", "{v}"]]])
def test_where_the_template_leaves_no_doubt_a_value_may_begin_with_a_dash(argv):
    declared = program(argv=argv, params={"v": {"type": "str"}})
    assert params(declared, v="-1")["v"] == "-1"


@pytest.fixture
def programs(tmp_path):
    return declared(
        tmp_path,
        """
        [programs.train]
        argv = ["train", "--steps={steps}"]
        env = { TOKEN = "{pass}" }
        [programs.train.params]
        steps = { type = "int", max = 10, default = 5 }
        pass = { type = "str", secret = true }
    """,
    )


def test_what_is_shown_has_defaults_and_no_secrets(programs):
    shown = parse_params("command", {"program": "train", "params": {"pass": "hunter22"}}, programs)
    assert shown == {"program": "train", "params": {"steps": 5, "pass": "**********"}}


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"program": "trian"}, UnknownProgram, "did you mean `train`"),
        (
            {"program": "train", "params": {"pass": "x", "stepz": 1}},
            InvalidRequest,
            "`params.params.stepz`; did you mean `steps`",
        ),
        (
            {"program": "train", "params": {"pass": "x", "steps": 4711}},
            InvalidRequest,
            "`params.params.steps`: input should be less than or equal to 10",
        ),
        ({"program": "train"}, InvalidRequest, "`params.params.pass`: field required"),
        ({"params": {}}, InvalidRequest, "`params.program`: field required"),
    ],
)
def test_a_refusal_names_the_place_and_the_nearest_name_and_no_value(
    programs, given, error, sentence
):
    with pytest.raises(error) as refused:
        parse_params("command", given, programs)
    assert sentence in str(refused.value)
    assert "4711" not in str(refused.value)


def test_without_a_file_there_is_no_program():
    with pytest.raises(UnknownProgram, match="WORKER_PROGRAMS"):
        parse_params("command", {"program": "train"}, read_programs(None))


def test_the_schema_has_one_form_a_program(programs):
    [form] = programs.schema()["oneOf"]
    assert form["properties"]["program"] == {"const": "train"}
    assert form["properties"]["params"]["properties"]["steps"]["maximum"] == 10
    assert form["required"] == ["program", "params"]


def test_a_child_is_told_the_declaration_that_the_worker_has_checked(programs):
    told = programs.declaration({"program": "train", "params": {}})
    assert Program.model_validate(json.loads(json.dumps(told))) == programs.by_name["train"]


# ---- an operator's mistakes


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[programs.x]\nargv = ['x',, ]", "line 2"),
        ("", "programs: is missing"),
        ("[program.x]\nargv = ['x']", "programs: is missing"),
        ("[programs.x]\nargv = []", "programs.x.argv"),
        ("[programs.x]\nargs = ['x']", "programs.x"),
        (
            "[programs.x]\nargv = ['x', '{stepz}']\nparams.steps.type = 'int'",
            "programs.x: argv: there is no placeholder `stepz`; did you mean `steps`?",
        ),
        ("[programs.x]\nargv = ['x', '{a.b}']", "in braces stands the name of a param"),
        ("[programs.x]\nargv = ['x', '{']", "programs.x"),
        ("[programs.x]\nargv = ['{p}']\nparams.p.type = 'str'", "does not depend on a param"),
        (
            "[programs.x]\nargv = ['x', '{inputs}/{d}']\nparams.d.type = 'str'",
            "`d` is part of a path, so its type must be `path`",
        ),
        (
            "[programs.x]\nargv = ['x', '{p}']\nparams.p = {type = 'str', secret = true}",
            "`p` is secret",
        ),
        (
            "[programs.x]\nargv = ['x', '{p}']\nparams.p = {type = 'str', optional = true}",
            "`p` may be null",
        ),
        (
            "[programs.x]\nargv = ['x', 'a{p}']\n"
            "params.p = {type = 'list', items = {type = 'int'}}",
            "`p` is a list and must stand alone",
        ),
        ("[programs.x]\nargv = ['x', '{config}']", "there is no placeholder `config`"),
        ("[programs.x]\nargv = ['x', {when = 'y', items = ['z']}]", "`when` names no param"),
        ("[programs.x]\nargv = ['x']\nresume = ['{resume}']", "no `checkpoints` to resume from"),
        ("[programs.x]\nargv = ['x']\nparams.outputs.type = 'str'", "`outputs` cannot be the name"),
        ("[programs.x]\nargv = ['x']\nparams.copy.type = 'str'", "`copy` cannot be the name"),
        ("[programs.x]\nargv = ['x']\nparams.p = {type = 'int', default = 'a'}", "its default"),
        (
            "[programs.x]\nargv = ['x']\nparams.p = {type = 'int', max_length = 3}",
            "`max_length` has no meaning for the type int",
        ),
        ("[programs.x]\nargv = ['x']\nparams.p = {type = 'str', pattern = '('}", "`pattern` is no"),
        ("[programs.x]\nargv = ['x']\nparams.p = {type = 'choice'}", "needs `choices`"),
        ("[programs.x]\nargv = ['x']\noutputs = [{path = '../secrets'}]", "relative path"),
        ("[programs.x]\nargv = ['x']\noutputs = [{path = '/etc/*'}]", "relative path"),
        ("[programs.x]\nargv = ['x']\noutputs = [{path = '{inputs}/x'}]", "relative path"),
        ("[programs.x]\nargv = ['x']\ncheckpoints.path = '{work}/../x'", "relative path"),
        ("[programs.x]\nargv = ['x']\nprogress.lines = '(\\d+)'", "(?P<step>"),
        ("[programs.x]\nargv = ['x']\nprogress.lines = '('", "no regular expression"),
        ("[programs.x]\nargv = ['x']\nprogress = {file = 'a', lines = 'b'}", "give `lines`"),
        ("[programs.x]\nargv = ['x']\nprogress = {file = 'a', total = 'b'}", "names a param"),
        ("[programs.x]\nargv = ['x']\nconfig.when = 2026-01-01", "texts, numbers"),
        ("[programs.x]\ndescription = 'x'", "programs.x.argv: is missing"),
        ("[programs.x]\nargv = ['x']\nparams.p = 3", "programs.x.params.p: must be a table"),
        ("[programs.x]\nargv = ['x']\ndescription = 3", "description: must be a text in quotes"),
        ("[programs.x]\nargv = ['x']\nconfine = 3", "confine: must be true or false"),
        ("[programs.x]\nargv = ['x']\nstop_signal = 'SIGKILL'", "programs.x.stop_signal"),
        ("[programs.x]\nargv = ['x']\nwritable = ['cache']", "programs.x.writable.0"),
    ],
)
def test_a_wrong_declaration_is_told_in_one_sentence_with_its_place(tmp_path, toml, sentence):
    with pytest.raises(ProgramsInvalid) as told:
        declared(tmp_path, toml)
    assert str(told.value).startswith(f"WORKER_PROGRAMS: {tmp_path}/programs.toml: ")
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ProgramsInvalid, match=r"WORKER_PROGRAMS: .*No such file"):
        read_programs(tmp_path / "none.toml")


def test_the_examples_are_in_order():
    assert set(read_programs(EXAMPLES).by_name) == {"train_plain", "picture_trainer"}


# ---- progress

BAR = r"(?P<step>\d+)/(?P<total>\d+) \[.*?(?:loss=(?P<loss>[\d.e+-]+))?\]"


def test_a_bar_is_read_though_its_states_end_with_a_return_and_come_in_pieces():
    lines = PrintedLines(BAR)
    text = " 10%|#| 1/10 [00:00<00:01, loss=0.5]\r 20%|##| 2/10 [00:00<00:01, loss=0.25]"
    for letter in text.encode():
        lines.feed(bytes([letter]))
    assert lines.newest == (2, 10, "", {"loss": 0.25})


def test_lines_without_a_step_do_not_replace_what_was_seen():
    lines = PrintedLines(r"step (?P<step>\S+)")
    lines.feed(b"step 7\nstep one\nsaving\n\xff\xfe\n")
    assert lines.newest == (7, None, "", {})


def test_an_endless_line_takes_no_memory():
    lines = PrintedLines(r"step (?P<step>\d+)")
    for _ in range(100):
        lines.feed(b"x" * 65536)
    assert len(lines._partial) <= 16384
    assert len(lines.tail) <= 16384


def test_a_progress_file_that_is_begun_anew_is_read_anew(tmp_path):
    path = tmp_path / "progress.jsonl"
    file = ProgressFile(path, 1 << 20)
    assert file.read() is None
    path.write_text('{"step": 5}\n{"step": 6}\n')
    assert file.read().step == 6
    path.write_text('{"step": 1}\n')
    assert file.read().step == 1
    assert file.read() is None


def test_a_writer_that_is_faster_than_the_reader_does_not_keep_it_from_the_limit(
    tmp_path, monkeypatch
):
    """After each portion that is read there is as much again: the file has no end."""
    path = tmp_path / "progress.jsonl"
    path.write_text('{"step": 1}\n')
    really_read = os.pread

    def read_and_append(*arguments):
        assert path.stat().st_size < 100_000, "it is still reading"
        with path.open("a") as writer:
            writer.write('{"step": 2}\n' * 100)
        return really_read(*arguments)

    monkeypatch.setattr(os, "pread", read_and_append)
    file = ProgressFile(path, 1024)
    assert file.read().step == 1
    with pytest.raises(JobFailed) as failed:
        file.read()
    assert failed.value.code == "progress_flood"


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"step": -1}', '{"step": true}', '{"step": 1e400}', "[" * 5000, "\xff"]
)
def test_a_line_that_tells_of_no_step_is_passed_over(tmp_path, line):
    (tmp_path / "p").write_text(f'{{"step": 1}}\n{line}\n{"x" * 99999}\n')
    assert ProgressFile(tmp_path / "p", 1 << 20).read().step == 1


def test_neither_a_link_nor_a_pipe_is_read_as_progress(tmp_path):
    (tmp_path / "other").write_text('{"step": 1}\n')
    (tmp_path / "link").symlink_to("other")
    os.mkfifo(tmp_path / "pipe")
    assert ProgressFile(tmp_path / "link", 1 << 20).read() is None
    assert ProgressFile(tmp_path / "pipe", 1 << 20).read() is None
