"""Records of a newer format: a rolling release mixes versions, and the older one keeps away."""

import asyncio
import json

import pytest

from records.index import DELETED, age_key, index_key
from records.keys import record_key
from records.reading import RecordNewer, RecordUnreadable, decode_record
from records.record import FORMAT, Record
from tests.aged import cleaned, cleaner, days_ago, ended, seed
from tests.crowd import on_every_store
from tests.servers import keys_of, on_local

#: With the id of a process that a newer worker has written.
ASKED = {
    "process_status": {},
    "cancel": {},
    "delete": {"confirm": "p"},
    "download": {},
    "logs": {},
    "start": {"kind": "sleep"},
}


def newer(record: Record, **changes) -> bytes:
    """`record` as the next version might write it: this one can read some of it."""
    fields = json.loads(record.encode()) | {"format": FORMAT + 1, "status": "paused", "writer": 7}
    return json.dumps(fields | changes).encode()


async def becomes_newer(crowd, process_id, **changes):
    """A newer worker writes the record. What the store then holds of the process."""
    data = newer(await crowd.record(process_id), **changes)
    await crowd.store.put(record_key(process_id), data)
    return data, await keys_of(crowd.store)


def test_a_record_says_its_format():
    assert json.loads(ended("p", 1).encode())["format"] == FORMAT


@pytest.mark.parametrize(
    "changes", [{}, {"status": "completed", "writer": {"worker_id": "w", "nonce": "1"}}]
)
def test_a_newer_format_is_told_from_what_is_no_record(changes):
    """Also where this version could read all of it."""
    with pytest.raises(RecordNewer, match=f"format {FORMAT + 1}"):
        decode_record("p", newer(ended("p", 1), **changes))
    for other in (b"", b"[]", b"{}", b'{"format": "x"}', ended("q", 1).encode()):
        with pytest.raises(RecordUnreadable) as refused:
            decode_record("p", other)
        assert not isinstance(refused.value, RecordNewer)


@on_every_store
@pytest.mark.parametrize("action", ASKED)
async def test_every_action_about_it_is_refused_in_words_and_changes_nothing(crowd, action):
    owner, other = crowd.worker(), crowd.worker()
    await owner.start("p", artifacts=1)
    data, keys = await becomes_newer(crowd, "p")
    reply = await other(action, process_id="p", **ASKED[action])
    assert reply["error"]["code"] == "record_newer"
    assert reply["error"]["retryable"]
    assert "newer version" in reply["error"]["message"]
    assert (await crowd.store.get(record_key("p"))).data == data
    assert await keys_of(crowd.store) == keys


async def test_a_list_shows_its_row_and_a_bulk_goes_on_without_it(crowd):
    owner, other = crowd.worker(), crowd.worker()
    for name in ("p", "q"):
        await owner.start(name, artifacts=1)
    await becomes_newer(crowd, "p")
    rows = (await other("processes"))["processes"]
    assert sorted(row["process_id"] for row in rows) == ["p", "q"]
    bulk = (await other("bulk_download", process_ids=["p", "q"]))["processes"]
    assert [(each["status"], len(each["files"])) for each in bulk] == [
        ("unreadable", 0),
        ("completed", 1),
    ]


async def test_a_worker_whose_process_a_newer_one_took_lets_go_of_it(crowd):
    owner = crowd.worker(heartbeat_seconds=0.1)
    held = await owner.running("p")
    run = owner.runs()[0]
    data, _ = await becomes_newer(crowd, "p")
    reply = await held
    assert reply["error"]["code"] == "record_newer"
    await asyncio.wait([run.task])
    assert run.lease.lost.is_set()
    assert (await crowd.store.get(record_key("p"))).data == data


async def test_a_worker_that_starts_leaves_it_alone(crowd):
    await crowd.worker().start("p")
    data, keys = await becomes_newer(crowd, "p")
    await crowd.worker().manager.recover()
    assert (await crowd.store.get(record_key("p"))).data == data
    assert await keys_of(crowd.store) == keys


@on_local
@pytest.mark.parametrize("deleted", [False, True])
async def test_a_cleaner_removes_nothing_of_it(store, tmp_path, deleted):
    """Neither by its rows nor in its sweep."""
    record = ended("p", 60)
    await seed(store, record)
    await store.put(age_key(DELETED, "p", days_ago(60)), b"")
    await store.put(record_key("p"), newer(record, deleted=deleted))
    before = set(await keys_of(store))
    assert await cleaned(cleaner(store, tmp_path)) == {}
    assert set(await keys_of(store)) == before | {"locks/retention"}
    assert index_key(record) in before
