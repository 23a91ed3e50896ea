"""Files of a checkpoint come back with their times, in their order, the newest last.

Trainers take the newest file by its ctime, its mtime or the number in its name.
"""

import asyncio
import json
from pathlib import Path

from attempts.own_files import OwnFolder
from attempts.restoring import restore
from attempts.uploads import checkpoint_key
from child.confine import can_confine
from records.manifest import artifact_key
from records.record import Checkpoint, CheckpointFile
from tests.choosing_trainer import NAMES
from tests.crowd import on_every_store
from tests.with_inputs import sha256
from worker.workplace import Workplace

TRAINER = Path(__file__).with_name("choosing_trainer.py")
DECLARATION = f"""
[programs.trainer]
argv = ["{{python}}", "{TRAINER}", "{{outputs}}"]
resume = ["{{resume}}"]
checkpoints = {{ path = "out/lora", settle_seconds = 0.3 }}
{"" if can_confine() else "confine = false"}
"""
#: In nanoseconds since the epoch; a float would lose the last digits.
LONG_AGO = 1_600_000_000_123_456_789


@on_every_store
async def test_each_way_to_choose_leads_to_the_newest_file(crowd, tmp_path):
    programs = tmp_path / "programs.toml"
    programs.write_text(DECLARATION)
    request = {"kind": "command", "process_id": "p", "params": {"program": "trainer"}}
    worker = crowd.worker(programs=programs)
    worker.held.append(asyncio.create_task(worker("start", "p", **request)))
    record = await crowd.record_when("p", lambda record: record.checkpoints)
    saved = {Path(file.path).name: file.modified_ns for file in record.checkpoints[-1].files}
    await worker.die()
    reply = await crowd.heir(programs=programs)("start", "p", **request)
    assert (reply["status"], reply["attempt"]) == ("completed", 2), reply
    stored = await crowd.store.get(artifact_key("p", 2, "chosen.json"))
    seen = json.loads(stored.data)
    assert seen["chosen"] == dict.fromkeys(("ctime", "mtime", "number"), NAMES[-1])
    assert seen["times"] == saved


@on_every_store
async def test_the_files_of_a_checkpoint_are_restored_oldest_first(crowd, tmp_path):
    files = tuple(
        CheckpointFile(path=f"c/{name}", size=1, sha256=sha256(b"1"), modified_ns=LONG_AGO - age)
        for name, age in (("a", 0), ("b", 2), ("c", 1))
    )
    checkpoint = Checkpoint(attempt=1, seq=1, files=files)
    for file in files:
        await crowd.store.put(checkpoint_key("p", checkpoint, file.path), b"1")
    own = OwnFolder(Workplace(tmp_path / "work"), "p.1")
    own.make()
    folder, _ = await restore(crowd.store, "p", (checkpoint,), own)
    facts = {path.name: path.stat() for path in folder.iterdir()}
    assert {name: each.st_mtime_ns for name, each in facts.items()} == {
        "a": LONG_AGO,
        "b": LONG_AGO - 2,
        "c": LONG_AGO - 1,
    }
    assert max(facts, key=lambda name: facts[name].st_ctime_ns) == "a"
