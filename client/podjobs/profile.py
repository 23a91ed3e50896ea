"""Which endpoint and which key: arguments, then the environment, then the saved profile."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import platformdirs

from podjobs.errors import NotConfigured


class Profile(NamedTuple):
    """An endpoint, perhaps one for control, and the key to both."""

    endpoint: str
    control: str | None
    key: str | None


def profile_path() -> Path:
    """Where `podjobs login` saves."""
    return platformdirs.user_config_path("podjobs") / "profile.json"


def load_profile(
    *, endpoint: str | None = None, control: str | None = None, key: str | None = None
) -> Profile:
    """The first of argument, environment and saved profile that says it.

    Raises:
        NotConfigured: no endpoint is known.
    """
    saved = saved_profile()
    chosen = endpoint or os.environ.get("PODJOBS_ENDPOINT") or saved.get("endpoint")
    if not chosen:
        raise NotConfigured(
            "no endpoint is known",
            next_step="give --endpoint, set PODJOBS_ENDPOINT, or run `podjobs login`",
        )
    other = control or os.environ.get("PODJOBS_CONTROL")
    if other is None and chosen == saved.get("endpoint"):
        other = saved.get("control")
    return Profile(chosen, other, key or os.environ.get("RUNPOD_API_KEY") or saved.get("key"))


def saved_profile() -> dict[str, str]:
    """The fields that `podjobs login` saved; empty if it never did.

    Raises:
        NotConfigured: the file is damaged.
    """
    place = profile_path()
    try:
        saved = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NotConfigured(
            f"{place} cannot be read: {error}", next_step="run `podjobs login` again"
        ) from None
    if not isinstance(saved, dict):
        raise NotConfigured(f"{place} is damaged", next_step="run `podjobs login` again")
    return {str(name): str(value) for name, value in saved.items() if value}


def save_profile(**fields: str | None) -> Path:
    """Save what is given beside what is there, readable by this user alone."""
    place = profile_path()
    kept: dict[str, str] = {}
    with suppress(NotConfigured):  # a damaged file is replaced
        kept = saved_profile()
    kept |= {name: value for name, value in fields.items() if value is not None}
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(kept, stream, indent=2)
    os.replace(fresh, place)  # noqa: PTH105 - atomic on every system
    return place
