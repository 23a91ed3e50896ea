"""kill -9 of the worker, of the child, and of both, before and after every write of a run.

Whatever was killed and when: the same start, delivered again, comes to the same end. Here the
folder takes all deaths and Ceph RGW a sample; KILL_MATRIX=all makes it take all, too.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from attempts.uploads import checkpoint_key
from records.manifest import Manifest, manifest_key
from tests.invariants import read_record, violations
from tests.mortal_worker import Death, Life, Nursery
from tests.servers import open_place
from tests.worker_process import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from records.record import Record
    from storage import Store
    from tests.servers import Place, S3Server

EVERY_DEATH = os.environ.get("KILL_MATRIX") == "all"
#: Most of a case is waiting for a lease to expire.
CASES_AT_A_TIME = 12
STEPS = 6
SLEEP = {"steps": STEPS, "seconds": 0.6, "checkpoint_every": 2, "artifacts": 2}
TRAIN = {
    "dataset": "examples/digits/images",
    "image_size": 8,
    "channels": 8,
    "steps": 30,
    "batch_size": 4,
    "sample_every": 30,
    "checkpoint_every": 5,
    "device": "cpu",
}


class Case(NamedTuple):
    """One process: a worker that dies at it, and one that it is delivered to again."""

    place: Place
    folder: Path
    kind: str
    params: dict[str, Any]
    #: How often a worker writes while nothing changes is a matter of time; these runs are short.
    settings: dict[str, Any]

    def life(self, name: str, death: Death | None = None) -> Life:
        request = {"action": "start", "kind": self.kind, "params": self.params}
        settings = {**self.settings, "worker_id": name}
        return Life(self.place, str(self.folder / name), request, "p", settings, death)


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    async with Nursery() as nursery:
        yield nursery


@pytest.fixture(params=["local", "ceph"])
def new_case(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Case]:
    """Make a case with a store of its own, here and there in turn."""
    server: S3Server | None = request.param == "ceph" and request.getfixturevalue("ceph")
    numbers = iter(range(1000))
    settings = {"progress_write_seconds": 0.5}

    def make(kind: str, params: dict[str, Any]) -> Case:
        folder = tmp_path / f"case-{next(numbers)}"
        place: Place = server.place() if server else {"root": str(folder / "store")}
        return Case(place, folder, kind, params, settings)

    return make


@pytest.mark.parametrize("victim", ["worker", "child", "both"])
@pytest.mark.timeout(300)
async def test_a_death_at_any_write_changes_nothing_in_the_end(
    victim: str, new_case: Callable[..., Case], nursery: Nursery
) -> None:
    undisturbed = new_case("sleep", SLEEP).life("undisturbed")
    assert await nursery.run(undisturbed) == 0
    writes = len(undisturbed.writes)
    deaths = [Death(when, k, victim) for k in range(1, writes + 1) for when in ("before", "after")]
    if "bucket" in undisturbed.place and not EVERY_DEATH:
        deaths = deaths[::9]
    turn = asyncio.Semaphore(CASES_AT_A_TIME)

    async def go_through(death: Death) -> bool:
        async with turn:
            return await _go_through(death, new_case("sleep", SLEEP), nursery)

    struck = await asyncio.gather(*map(go_through, deaths))
    if victim != "child":  # it may not have been born yet, or have ended
        assert sum(struck) > 0.7 * len(deaths), "most deaths were died"
    await eventually(lambda: not nursery.living(), "no child outlived its worker")


async def _go_through(death: Death, case: Case, nursery: Nursery) -> bool:
    """One death and what comes of it; whether it was died at all."""
    first, second = case.life("first", death), case.life("second")
    status = await nursery.run(first)
    assert status in ((0,) if death.victim == "child" else (0, -9)), death
    store = open_place(case.place)
    try:
        before = await read_record(store, "p")
        saved = await _saved_step(store, before)
        assert await nursery.run(second) == 0, death
        after = await read_record(store, "p")
        assert after is not None, death
        assert await violations(store, after) == [], death
    finally:
        await store.close()
    assert second.reply is not None
    assert after.status == second.reply["status"] == "completed", (death, second.reply)
    if before is None or before.status == "completed":
        assert after.attempt == 1, death  # nothing to continue
    else:
        assert after.attempt == 2, death
        assert after.result["resumed_from"] == saved, death  # no step before it is done again
    return status == -9


async def _saved_step(store: Store, record: Record | None) -> int | None:
    """The step that the newest checkpoint in the record was made at."""
    if record is None or not record.checkpoints:
        return None
    checkpoint = record.checkpoints[-1]
    stored = await store.get(checkpoint_key("p", checkpoint, checkpoint.files[0].path))
    return int(stored.data)


@pytest.mark.parametrize("new_case", ["local"], indirect=True)
async def test_a_training_that_was_killed_makes_the_same_model_to_the_bit(
    new_case: Callable[..., Case], nursery: Nursery
) -> None:
    undisturbed = new_case("train_diffusion", TRAIN).life("undisturbed")
    assert await nursery.run(undisturbed) == 0
    model = await _model(undisturbed.place)
    # When the second checkpoint goes up, the record names the first.
    deaths = [
        Death("before", 2, "worker", "/checkpoints/"),
        Death("after", 2, "both", "/checkpoints/"),
        Death("after", 2, "child", "/checkpoints/"),
    ]

    async def go_through(death: Death) -> None:
        case = new_case("train_diffusion", TRAIN)
        await nursery.run(case.life("first", death))
        again = case.life("second")
        assert await nursery.run(again) == 0
        assert again.reply is not None
        assert again.reply["status"] == "completed", (death, again.reply["failure"])
        reasons = [entry["reason"] for entry in again.reply["history"] if entry["attempt"] == 2]
        assert any(reason.startswith("resumed from checkpoint") for reason in reasons), death
        assert await _model(case.place) == model, death

    await asyncio.gather(*map(go_through, deaths))


async def _model(place: Place) -> str:
    """The SHA-256 of the trained model, as the store really holds it."""
    store = open_place(place)
    try:
        record = await read_record(store, "p")
        assert record is not None
        assert await violations(store, record) == []
        stored = await store.get(manifest_key("p", record.attempt))
        files = Manifest.model_validate_json(stored.data).files
    finally:
        await store.close()
    return next(file.sha256 for file in files if file.path == "model.safetensors")
