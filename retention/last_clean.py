"""When a worker last cleaned, and how far its sweeps have come: one small object in the store.

Its age, by the store's clock, is the time since a worker last began to clean or came a step
further. A worker that finds it young does nothing; else it writes the object, by compare-and-swap,
and cleans. So one worker usually cleans. Two at once do no harm: each deletion is safe by itself.
"""

from __future__ import annotations

from contextlib import suppress

from pydantic import BaseModel, Field, ValidationError

from storage import ObjectChanged, ObjectExists, ObjectNotFound, Store
from utils import new_nonce

KEY = "locks/retention"


class SweepPlace(BaseModel, frozen=True):
    """How far a sweep has come."""

    #: The name after which it goes on; empty: a round begins.
    after: str = ""
    #: How many names this round has seen.
    seen: int = Field(default=0, ge=0)


class State(BaseModel, frozen=True):
    """The object as it is stored."""

    #: No two versions are the same bytes.
    nonce: str = ""
    places: dict[str, SweepPlace] = {}


class LastClean:
    """The object, as this worker read or wrote it last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._state = State()
        self._version = ""
        #: Since it was written, and when it was read, both by the store's clock; None: no worker
        #: has cleaned yet, or the store does not tell the time.
        self.age_seconds: float | None = None
        self.now: float | None = None

    async def look(self) -> None:
        """Read it. One request."""
        try:
            stored = await self._store.get(KEY)
        except ObjectNotFound:
            return
        with suppress(ValidationError):  # an object of another form: the sweeps begin anew
            self._state = State.model_validate_json(stored.data)
        self._version, self.age_seconds = stored.version, stored.age_seconds
        self.now = None if stored.age_seconds is None else stored.modified + stored.age_seconds

    @property
    def exists(self) -> bool:
        """Whether a worker has ever cleaned."""
        return bool(self._version)

    def place(self, sweep: str) -> SweepPlace:
        place = self._state.places.get(sweep, SweepPlace())
        return SweepPlace() if "/" in place.after else place

    async def write(self, **places: SweepPlace) -> bool:
        """Say that this worker cleans and has come so far; False: another worker cleans, too."""
        self._state = State(nonce=new_nonce(), places={**self._state.places, **places})
        data = self._state.model_dump_json().encode()
        with suppress(ObjectChanged, ObjectExists):
            if self._version:
                self._version = await self._store.replace(KEY, data, self._version)
            else:
                self._version = await self._store.create(KEY, data)
            return True
        return False
