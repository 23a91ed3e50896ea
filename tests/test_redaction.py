"""A secret is known by its place and by its value, and leaves by no way."""

import json
import logging
import os
import time
from pathlib import Path

import pytest

from child import runner
from jobs import JOBS
from stores.prefixes import list_all
from tests import leaky_job
from tests.crowd import on_every_store
from tests.kit import Caller
from worker.log import JsonLines, log_context
from worker.redaction import MASK, Redactor, environment_secrets, is_secret_name, secrets_in

VALUE = "planted-4d1c9f7e62"


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "hf_token",
        "HF_TOKEN",
        "token",
        "apiKey",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "clientSecret",
        "Authorization",
        "private-key",
        "RUNPOD_AI_API_KEY",
    ],
)
def test_a_name_like_a_secrets_is_known(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokens",
        "max_new_tokens",
        "pad_token",
        "trigger_token",
        "token_accuracy",
        "monkey",
        "key",
        "access_key_id",
        "keyboard",
        "tokenizer",
        "steps",
    ],
)
def test_words_that_models_use_are_no_secrets(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://b.example/k?X-Amz-Date=1&X-Amz-Signature=ab12 200",
            f"GET https://b.example/k?X-Amz-Date=1&X-Amz-Signature={MASK} 200",
        ),
        ("clone https://me:pass@example.com/x", f"clone https://{MASK}@example.com/x"),
        ("Authorization: Bearer abcdefgh.ijkl", f"Authorization: Bearer {MASK}"),
        ('{"api_key": "abc123xyz"}', f'{{"api_key": "{MASK}"}}'),
        ("export HF_TOKEN=hf_abc", f"export HF_TOKEN={MASK}"),
        ("key AKIAIOSFODNN7EXAMPLE in use", f"key {MASK} in use"),
        ("found hf_abcdefghijklmnopqrstuv", f"found {MASK}"),
        ("num_tokens: 512, max_tokens=77", "num_tokens: 512, max_tokens=77"),
        ("secret=0.5 password: 3", "secret=0.5 password: 3"),
        ("my-db-password=abcdef", f"my-db-password={MASK}"),
        ("step 5: loss=0.25 key=value?", "step 5: loss=0.25 key=value?"),
    ],
)
def test_a_secret_is_known_by_its_place(text, shown):
    assert Redactor().text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "it is p/4+ss wörd now",
        "u=p%2F4%2Bss%20w%C3%B6rd",
        "u=p%2F4%2Bss+w%C3%B6rd",
        r'{"a": "p/4+ss w\u00f6rd"}',
    ],
)
def test_a_value_is_found_as_it_is_in_a_url_and_in_json(text):
    shown = Redactor(["p/4+ss wörd"]).text(text)
    assert MASK in shown
    assert "ss" not in shown


@pytest.mark.timeout(20)  # a pattern that goes back over what it has read would take hours
@pytest.mark.parametrize("piece", ["a-", "a.b+", "eyJa", "a@b:", "key-", "?x=", "123e4567-e89b-"])
def test_a_long_line_takes_no_longer_than_many_short_ones(piece):
    line = piece * (256 * 1024 // len(piece)) + "? token :// key"
    assert len(Redactor([VALUE]).text(line)) > 200_000


#: Texts that almost match, each the piece of one pattern.
ALMOST = [
    "eyJ-",
    "eyJ0123456789.",
    "eyJ",
    "Bearer ",
    "secret=1.",
    "secret = ",
    "a.b-c+",
    "https://a",
    "?token=&",
    "-----BEGIN A PRIVATE KEY",
    "hf_sk-xoxa-gho_",
    "AKIA0",
]


@pytest.mark.parametrize("piece", ALMOST)
def test_a_text_that_almost_matches_takes_no_longer_than_another(piece):
    """CPU time of this thread, the least of several; a token without its end took 60 times as long.

    A job prints such texts as it likes, and every log line and event of it is searched.
    """

    def least(part):
        text = (part * 65536)[:65536]

        def once():
            begin = time.thread_time()
            Redactor().text(text)
            return time.thread_time() - begin

        return min(once() for _ in range(5))

    assert least(piece) < 15 * least("word = x ")


def test_of_a_reply_links_ids_and_paths_stay_whole_and_nothing_else_does():
    """With temporary credentials a presigned URL holds their token; an id is the next request's."""
    row = {"url": f"https://b/x?t={VALUE}", "path": VALUE, "sha256": VALUE, "data": VALUE}
    reply = {"process_id": VALUE, "message": VALUE, "files": [row], "next_cursor": VALUE}
    assert Redactor([VALUE]).reply(reply) == reply | {"message": MASK}


@pytest.mark.parametrize("value", ["runpod", "changeme", "jupyter", "12345678", "Password"])
def test_a_common_value_is_masked_in_logs_and_not_in_replies(value):
    redactor = Redactor([value])
    assert redactor.reply({"message": f"{value}-lora done"}) == {"message": f"{value}-lora done"}
    assert not redactor.knows_part_of(value)
    assert redactor.text(f"the key is {value}") == f"the key is {MASK}"


def test_a_short_value_is_not_looked_for():
    """Or every text would be full of holes."""
    assert Redactor(["true", "1"]).text("true: 1") == "true: 1"


def test_of_two_values_one_of_which_is_part_of_the_other_the_longer_goes_whole():
    assert Redactor(["secret-1", "secret-1-and-more"]).text("<secret-1-and-more>") == f"<{MASK}>"


def test_what_was_masked_in_params_is_what_must_not_be_shown():
    given = {"token": VALUE, "steps": 3, "nested": {"password": "other-secret"}, "list": [1]}
    shown = Redactor().fields(given)
    assert set(secrets_in(given, shown)) == {VALUE, "other-secret"}
    assert shown["steps"] == 3


def test_variables_named_like_secrets_and_those_that_the_operator_names_are_secret():
    environment = {"HF_TOKEN": "one-secret", "WANDB_ID": "two-secret", "HOME": "/root"}
    assert environment_secrets(environment, ["WANDB_ID"]) == ["one-secret", "two-secret"]


def test_a_line_of_the_log_says_what_it_belongs_to_and_keeps_secrets_back():
    record = logging.makeLogRecord({"msg": "saw %s", "args": (VALUE,), "where": {"token": "abc"}})
    with log_context(request_id="r1"), log_context(process_id="p1", attempt=2):
        line = json.loads(JsonLines(Redactor([VALUE]), "w1").format(record))
    assert line["message"] == f"saw {MASK}"
    assert (line["worker_id"], line["request_id"]) == ("w1", "r1")
    assert (line["process_id"], line["attempt"]) == ("p1", 2)
    assert line["where"]["token"] != "abc"


def test_a_traceback_in_the_log_keeps_secrets_back():
    error = ValueError(VALUE)
    record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, error, None)})
    line = JsonLines(Redactor([VALUE]), "w1").format(record)
    assert "ValueError" in line
    assert VALUE not in line


# ---- the whole worker


@pytest.fixture
def leaky(monkeypatch):
    """Kinds that tell whatever they know, in every way there is."""
    for name, job in leaky_job.KINDS.items():
        monkeypatch.setitem(JOBS, name, job)
    monkeypatch.setattr(runner, "ENTRY", (leaky_job.__file__,))
    monkeypatch.setenv("PLANTED_TOKEN", f"{VALUE}-environment")
    monkeypatch.setenv("PLAIN_NAME", f"{VALUE}-named")


async def everything_in(store):
    keys = [row.key async for row in list_all(store, "")]
    return b"\n".join([key.encode() + b"\n" + (await store.get(key)).data for key in keys])


def files_below(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@on_every_store
@pytest.mark.parametrize("kind", ["tell", "fail"])
async def test_a_secret_planted_everywhere_is_found_nowhere(crowd, tmp_path, leaky, caplog, kind):
    """In params and other params' texts, inputs' links, labels, the environment; told in every way
    that a job has, and asked for in every way that a caller has.
    """
    secrets = environment_secrets(os.environ, ["PLAIN_NAME"])
    call = Caller(
        crowd.store,
        tmp_path / "scratch",
        redactor=Redactor(secrets),
        child_env="PLANTED_TOKEN,PLAIN_NAME",
        stall_seconds=1,
    )
    caplog.handler.setFormatter(JsonLines(Redactor(secrets), "w1"))
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "botocore", "urllib3", "boto3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    params = {
        "token": f"{VALUE}-masked",
        "hf_token": f"{VALUE}-field",
        "note": f"use {VALUE}-masked and {VALUE}-environment",
    }
    replies = [
        await call(
            "start",
            kind=kind,
            process_id="p",
            params=params,
            labels={"api_key": f"{VALUE}-label", "n": f"{VALUE}-field"},
        )
    ]
    replies.append(await call("process_status", process_id="p"))
    replies.append(
        await call(
            "start",
            kind=kind,
            process_id="q",
            params=params,
            inputs={"a": f"https://example.invalid/{VALUE}-masked/x?sig={VALUE}-query"},
        )
    )
    replies.append(await call("start", kind=kind, process_id="r", params=params | {"odd": VALUE}))
    for action, fields in {
        "health": {},
        "logs": {"process_id": "p"},
        "processes": {},
        "metrics": {},
        "list_files": {"process_id": "p"},
        "download": {"process_id": "p"},
        "kinds": {},
        "bulk_download": {"process_ids": ["p", "q"]},
        "cancel": {"process_id": "p"},
    }.items():
        replies.append(await call(action, **fields))
    await call.handler.presence._write()
    logging.getLogger("worker").warning("seen: %s", os.environ["PLANTED_TOKEN"])
    assert replies[0]["status"] == ("completed" if kind == "tell" else "failed")
    told = await crowd.store.get("processes/p/attempts/1/logs/tail.txt")
    assert MASK.encode() in told.data  # the job did print them
    assert VALUE not in json.dumps(replies)
    assert VALUE.encode() not in await everything_in(crowd.store)
    assert VALUE.encode() not in files_below(tmp_path / "scratch")
    assert caplog.text
    assert VALUE not in caplog.text
