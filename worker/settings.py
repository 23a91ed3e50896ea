"""Everything the environment may say: `Settings`, read once when the worker starts."""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from utils import OWN_PREFIXES, did_you_mean
from worker import volume
from worker.bucket import bucket_name, check_together, credential, endpoint_address

Role = Literal["all", "gpu", "control"]
#: Of days that are counted in numbers: no one means a longer time.
MAX_DAYS = 3650


def _names(*names: str) -> AliasChoices:
    return AliasChoices(*names)


_Secret = Annotated[
    SecretStr,
    AfterValidator(lambda secret: SecretStr(credential(secret.get_secret_value()))),
]


class Settings(BaseSettings):
    """Everything the environment may say; read once, in `rp_handler.main`."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    # ---- the store: a bucket, or else a folder. Names people already have, RunPod's among them.
    bucket: Annotated[
        Annotated[str, AfterValidator(bucket_name)] | None,
        Field(
            validation_alias=_names("S3_BUCKET", "BUCKET_NAME"),
            description="The bucket that holds everything. Unset: a folder (WORKER_DATA_DIR).",
        ),
    ] = None
    prefix: Annotated[
        str,
        Field(
            validation_alias=_names("S3_PREFIX"),
            description="All keys lie under this prefix, so that endpoints can share a bucket.",
        ),
    ] = ""
    endpoint_url: Annotated[
        Annotated[str, AfterValidator(endpoint_address)] | None,
        Field(
            validation_alias=_names("S3_ENDPOINT_URL", "BUCKET_ENDPOINT_URL"),
            description="Where the S3 API answers. Unset: AWS.",
        ),
    ] = None
    region: Annotated[
        str | None,
        Field(
            validation_alias=_names("S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
            description="The bucket's region.",
        ),
    ] = None
    access_key_id: Annotated[
        Annotated[str, AfterValidator(credential)] | None,
        Field(
            validation_alias=_names("BUCKET_ACCESS_KEY_ID"),
            description="RunPod's name for the access key. Unset: boto3's own chain (AWS_*).",
        ),
    ] = None
    secret_access_key: Annotated[
        _Secret | None,
        Field(
            validation_alias=_names("BUCKET_SECRET_ACCESS_KEY"),
            description="Goes with BUCKET_ACCESS_KEY_ID.",
        ),
    ] = None
    session_token: Annotated[
        _Secret | None,
        Field(
            validation_alias=_names("BUCKET_SESSION_TOKEN"),
            description="Goes with BUCKET_ACCESS_KEY_ID when that is temporary.",
        ),
    ] = None
    tls_bundle: Annotated[
        str | None,
        Field(
            validation_alias=_names("S3_TLS_BUNDLE"),
            description="A file of certificates to trust at the endpoint. Unset: the usual ones.",
        ),
    ] = None
    s3_connect_timeout: Annotated[
        float,
        Field(
            validation_alias=_names("S3_CONNECT_TIMEOUT"),
            gt=0,
            le=10,
            description="Seconds to reach the store.",
        ),
    ] = 3.0
    s3_read_timeout: Annotated[
        float,
        Field(
            validation_alias=_names("S3_READ_TIMEOUT"),
            gt=0,
            le=15,
            description="Seconds to wait for an answer; a worker's lease hangs on it.",
        ),
    ] = 5.0
    s3_transfer_timeout: Annotated[
        float,
        Field(
            validation_alias=_names("S3_TRANSFER_TIMEOUT"),
            gt=0,
            description="Seconds without a byte before a file's request is given up.",
        ),
    ] = 30.0
    addressing_style: Annotated[
        str,
        Field(
            validation_alias=_names("S3_ADDRESSING_STYLE"),
            pattern="^(auto|path|virtual)$",
            description="path, virtual, or auto (boto3 decides).",
        ),
    ] = "auto"

    # ---- this machine
    data_dir: Annotated[
        Path | None,
        Field(
            description="The folder that stands in for a bucket. Unset: on the network volume "
            "if one is mounted, else ./data."
        ),
    ] = None

    scratch_dir: Annotated[
        Path,
        Field(description="Local disk for what attempts work on and for copies of records."),
    ] = Path(tempfile.gettempdir()) / "runpod-worker"
    worker_id: Annotated[
        str,
        Field(
            validation_alias=_names("WORKER_ID", "RUNPOD_POD_ID"),
            description="This worker's name in records and logs.",
        ),
    ] = Field(default_factory=lambda: f"local-{secrets.token_hex(4)}")

    # ---- what this worker takes on
    role: Annotated[
        Role,
        Field(description="all; gpu (only starts, as many as slots); control (no starts)."),
    ] = "all"
    slots: Annotated[int, Field(ge=1, le=64, description="Processes that run at a time.")] = 1
    max_attempts: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Attempts of a process before it fails for good; those "
            "that a worker's drain called off do not count.",
        ),
    ] = 5
    allow_detach: Annotated[
        bool,
        Field(
            description="Let `start` return at once. Only where the worker is not stopped when "
            "idle: a Pod, or an always-on worker."
        ),
    ] = False
    template: Annotated[
        bool,
        Field(
            description="Keep a process that has imported torch, and fork attempts from it: "
            "they begin in milliseconds instead of seconds."
        ),
    ] = True
    keep_seconds: Annotated[
        float,
        Field(
            ge=0,
            description="A kind that keeps a loaded model keeps it so long after it was "
            "last used; 0: never.",
        ),
    ] = 300.0
    keep_bytes: Annotated[
        ByteSize, Field(gt=0, description="No larger one is kept (host memory).")
    ] = ByteSize(16 << 30)
    child_env: Annotated[
        str,
        Field(description="Names of environment variables that jobs may see, comma-separated."),
    ] = ""
    programs: Annotated[
        Path | None,
        Field(
            description="A TOML file that declares the programs of the kind `command` "
            "(docs/programs.md)."
        ),
    ] = None

    # ---- files that come in. Sizes may be written as 20GiB.
    max_upload_bytes: Annotated[
        ByteSize, Field(gt=0, description="The largest file that a caller may upload.")
    ] = ByteSize(50 << 30)
    max_folder_bytes: Annotated[
        ByteSize, Field(gt=0, description="What an input folder may hold.")
    ] = ByteSize(200 << 30)
    max_folder_files: Annotated[
        int, Field(ge=1, le=100_000, description="How many files an input folder may hold.")
    ] = 10_000
    single_put_bytes: Annotated[
        ByteSize,
        Field(
            ge=5 << 20,
            le=5 << 30,
            description="What the store takes in one PUT; larger uploads are given links to parts.",
        ),
    ] = ByteSize(5 << 30)
    max_input_bytes: Annotated[
        ByteSize,
        Field(
            gt=0, description="What the inputs of one process may hold; unpacked, as much again."
        ),
    ] = ByteSize(200 << 30)
    max_output_bytes: Annotated[
        ByteSize,
        Field(
            gt=0,
            description="What the artifacts of one process may hold; one more fails the process "
            "before it is sent. A checkpoint that holds more is not kept.",
        ),
    ] = ByteSize(500 << 30)
    input_timeout_seconds: Annotated[
        float, Field(gt=0, description="An input that takes longer to fetch fails the process.")
    ] = 3600.0
    input_cache_bytes: Annotated[
        ByteSize,
        Field(
            ge=0,
            description="Inputs kept on the scratch disk for the next process; at most "
            "half of what is free there.",
        ),
    ] = ByteSize(20 << 30)
    allowed_hosts: Annotated[
        str,
        Field(
            description="Private hosts that inputs may come from, comma-separated, as `name` or "
            "`name:port`; they may speak http."
        ),
    ] = ""

    input_keys: Annotated[
        str,
        Field(
            description="Below which keys an input `key:KEY` may lie, whoever asks: "
            "comma-separated, each ending in `/`."
        ),
    ] = "shared/"

    # ---- running it
    secret_env: Annotated[
        str,
        Field(
            description="Names of environment variables whose values are shown nowhere, comma-"
            "separated; those named like a secret (`..._TOKEN`, `..._SECRET`, "
            "`..._API_KEY`, ...) need not be listed."
        ),
    ] = ""
    stall_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="A running process that reports no progress for so long is "
            "flagged (`why`); it is not ended.",
        ),
    ] = 900.0
    price_per_hour: Annotated[
        float | None,
        Field(
            ge=0,
            description="What this worker costs while it runs a process, in your currency "
            "per hour; for `metrics`.",
        ),
    ] = None
    presence_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=600,
            description="How often a worker writes its figures into the store, so "
            "that any worker's `metrics` can tell of all.",
        ),
    ] = 60.0
    min_free_bytes: Annotated[
        ByteSize,
        Field(
            ge=0, description="Less than this free on the scratch disk makes a worker `degraded`."
        ),
    ] = ByteSize(1 << 30)
    log_bytes: Annotated[
        ByteSize,
        Field(
            ge=1 << 20,
            description="What is kept of the log of an attempt: its beginning and "
            "its newest lines.",
        ),
    ] = ByteSize(16 << 20)
    prepare_dir: Annotated[
        Path | None,
        Field(
            description="Where kinds keep what they prepare once. Unset: on the network volume "
            "if one is mounted, else on the scratch disk."
        ),
    ] = None

    # ---- retention. Unset keeps for ever.
    process_days: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_DAYS,
            description="Processes that ended so many days ago are removed "
            "with all their files. Unset: never.",
        ),
    ] = None
    archive_days: Annotated[
        float | None,
        Field(gt=0, le=MAX_DAYS, description="The same for archives (`bulk_download`)."),
    ] = 7.0
    input_days: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_DAYS,
            description="Input folders that were neither changed nor used "
            "for so many days are removed. Unset: never.",
        ),
    ] = None
    clean_seconds: Annotated[
        float,
        Field(
            ge=0,
            description="How often the workers of a bucket, all together, look for what is "
            "to be removed; 0: never.",
        ),
    ] = 3600.0

    # ---- the protocol's times, in seconds
    heartbeat_seconds: Annotated[
        float, Field(gt=0, le=60, description="The owner rewrites a record at least this often.")
    ] = 10.0
    lease_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="A record not rewritten for this long has lost its owner."),
    ] = 30.0
    takeover_watch_seconds: Annotated[
        float,
        Field(ge=0, le=600, description="A lost record is watched this long before it is taken."),
    ] = 15.0  # an owner needs so long to write again after an outage: time-outs, back-off
    progress_write_seconds: Annotated[
        float, Field(gt=0, le=60, description="Progress reaches the store at most this often.")
    ] = 6.0
    cancel_poll_seconds: Annotated[
        float, Field(gt=0, le=60, description="The owner looks for a cancel note this often.")
    ] = 2.0
    cancel_grace_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=600,
            description="From asking a child to stop to killing its group; SIGTERM comes half-way.",
        ),
    ] = 10.0
    grace_seconds: Annotated[
        float, Field(gt=0, le=600, description="All of a drain on SIGTERM fits into this.")
    ] = 8.0
    store_patience_seconds: Annotated[
        float,
        Field(ge=0, description="A start waits this long for a store that does not answer."),
    ] = 120.0
    upload_patience_seconds: Annotated[
        float,
        Field(ge=0, description="An upload refused for this long fails the process."),
    ] = 3600.0

    @model_validator(mode="after")
    def _bucket_is_named_once(self) -> Self:
        check_together(self.endpoint_url, self.bucket)
        return self

    @model_validator(mode="after")
    def _lease_outlasts_heartbeat(self) -> Self:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                "WORKER_LEASE_SECONDS must be at least twice WORKER_HEARTBEAT_SECONDS, or one "
                "slow write loses a process"
            )
        return self

    @field_validator("prefix")
    @classmethod
    def _is_beginning_of_keys(cls, text: str) -> str:
        if text.strip("/") and not re.fullmatch(r"([^/\\\x00-\x1f]+/?)+", text.strip("/")):
            raise ValueError("is the beginning of keys, such as `endpoint-1`")
        if {".", ".."} & set(text.split("/")):
            raise ValueError("no part of it is `.` or `..`")
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _names_hosts(cls, text: str) -> str:
        for host in _parts(text):
            if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host):
                raise ValueError("is a list of hosts, each `name` or `name:port`, with commas")
        return text

    @field_validator("child_env", "secret_env")
    @classmethod
    def _names_variables(cls, text: str) -> str:
        for name in _parts(text):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError("is a list of names of environment variables, with commas")
        return text

    @field_validator("input_keys")
    @classmethod
    def _names_folders_of_keys(cls, text: str) -> str:
        for prefix in _parts(text):
            if not re.fullmatch(r"([^/\\]+/)+", prefix) or {".", ".."} & set(prefix.split("/")):
                raise ValueError(
                    "each is the beginning of keys, such as `shared/`: it ends in `/`, and no part "
                    "of it is empty, `.` or `..`"
                )
            if prefix.startswith(OWN_PREFIXES):
                raise ValueError(
                    f"the worker's own keys ({', '.join(OWN_PREFIXES)}) are nobody's inputs; "
                    "`folder:` and `process:` name what callers may have"
                )
        return text

    @property
    def input_key_prefixes(self) -> tuple[str, ...]:
        return tuple(_parts(self.input_keys))

    def local_store_root(self) -> Path:
        """The folder to use when there is no bucket."""
        if self.data_dir is not None:
            return self.data_dir.absolute()
        return volume.PATH / "worker-data" if volume.is_there() else Path("data").absolute()

    def prepared_root(self) -> Path:
        """Where kinds keep what they prepare once: shared by as many workers as can see it."""
        if self.prepare_dir is not None:
            return self.prepare_dir.absolute()
        return volume.PATH / "prepared" if volume.is_there() else self.scratch_dir / "prepared"


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def load_settings() -> Settings:
    """What the environment says; ends the program with one sentence a fault if it cannot be."""
    try:
        return Settings()
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        sys.exit("\n".join(map(_sentence, faults)))


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """A sentence for each name in `environment` that begins with WORKER_ and is no setting.

    Misspelt, it would silently do nothing.
    """
    known = variables()
    sentences = []
    for name in sorted(environment):
        if name.upper().startswith("WORKER_") and name.upper() not in known:
            own = [each.removeprefix("WORKER_") for each in known if each.startswith("WORKER_")]
            hint = did_you_mean(name.upper().removeprefix("WORKER_"), own, written="WORKER_{}")
            sentences.append(f"{name} is no setting of this worker and does nothing{hint}")
    return sentences


def variables() -> list[str]:
    """The names of all environment variables that `Settings` reads."""
    return [name for field in Settings.model_fields for name in names_of(field)]


def names_of(field: str) -> list[str]:
    """The environment variables that set `field`, the usual one first."""
    alias = Settings.model_fields[field].validation_alias
    return (
        [str(name) for name in alias.choices]
        if isinstance(alias, AliasChoices)
        else [f"WORKER_{field.upper()}"]
    )


def _sentence(fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    return f"{_variable(fault['loc'])}: {message}" if fault["loc"] else message


def _variable(where: tuple[int | str, ...]) -> str:
    """The environment variable that a fault is about: of several names, the one that is set."""
    told = str(where[0])
    for field in Settings.model_fields:
        names = names_of(field)
        if told == field or told in names:
            return next((name for name in names if name in os.environ), names[0])
    return told
