"""Leaves: settings, the error base, ids, time, logging. Imports nothing of ours."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AliasChoices, BaseModel, Field, JsonValue, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerError(Exception):
    """An error a caller may see. `code` is part of the wire contract and never changes."""

    code: ClassVar[str] = "internal_error"
    #: Whether the very same request may succeed later.
    retryable: ClassVar[bool] = False

    def payload(self) -> dict[str, JsonValue]:
        """What the caller gets: `{"code", "message", "retryable"}`."""
        return {"code": self.code, "message": str(self), "retryable": self.retryable}


def _names(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """Everything the environment may say; read once, in `rp_handler.main`."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_", frozen=True, extra="ignore", env_ignore_empty=True,
        populate_by_name=True,
    )  # fmt: skip

    # ---- the store: a bucket, or else a folder. Names people already have, RunPod's among them.
    bucket: Annotated[
        str | None,
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
        str | None,
        Field(
            validation_alias=_names("S3_ENDPOINT_URL", "BUCKET_ENDPOINT_URL"),
            description="Where the S3 API answers. Unset: AWS.",
        ),
    ] = None
    region: Annotated[
        str | None,
        Field(validation_alias=_names("S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
              description="The bucket's region."),
    ] = None  # fmt: skip
    access_key_id: Annotated[
        str | None,
        Field(
            validation_alias=_names("BUCKET_ACCESS_KEY_ID"),
            description="RunPod's name for the access key. Unset: boto3's own chain (AWS_*).",
        ),
    ] = None
    secret_access_key: Annotated[
        SecretStr | None,
        Field(
            validation_alias=_names("BUCKET_SECRET_ACCESS_KEY"),
            description="Goes with BUCKET_ACCESS_KEY_ID.",
        ),
    ] = None
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
        Field(description="The folder that stands in for a bucket. Unset: on the network volume "
                          "if one is mounted, else ./data."),
    ] = None  # fmt: skip

    def local_store_root(self) -> Path:
        """The folder to use when there is no bucket (DESIGN: a network volume is a real store)."""
        if self.data_dir is not None:
            return self.data_dir.absolute()
        volume = Path("/runpod-volume")
        return volume / "worker-data" if volume.is_mount() else Path("data").absolute()


class Frozen(BaseModel, frozen=True, extra="forbid"):
    """A value. Changing one means making the next one."""


def new_id() -> str:
    """A fresh process id: sortable by time, 26 characters of `[0-9a-z-]`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(5)}"


def utc_now() -> datetime:
    """Now, aware. Every time this worker writes down is UTC and says so."""
    return datetime.now(UTC)
