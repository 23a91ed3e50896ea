"""Another job swaps folders of an attempt for links while the worker fills them.

Nothing is written outside of the attempt's folder, from whatever source an input comes.
"""

import pytest

from attempts.own_files import OwnFolder
from attempts.restoring import restore
from attempts.uploads import checkpoint_key
from records.record import Checkpoint, CheckpointFile
from tests.crowd import on_every_store
from tests.with_inputs import allowing, folder_of, given, sha256
from worker.workplace import Workplace

pytestmark = pytest.mark.usefixtures("input_kinds")


def swap(folder, outside):
    """Lay a link to `outside` in the place of a folder. Idempotent."""
    if folder.is_dir() and not folder.is_symlink():
        folder.rename(folder.with_name(f"{folder.name}.moved"))
        folder.symlink_to(outside)


def swap_before(monkeypatch, owner, name, swap_all):
    """Have `swap_all` called before each call of the method `name` of `owner`."""
    method = getattr(owner, name)

    async def after_the_swap(*args, **options):
        swap_all()
        return await method(*args, **options)

    monkeypatch.setattr(owner, name, after_the_swap)


@pytest.fixture
def outside(tmp_path):
    outside = tmp_path / "outside"
    (outside / "inputs").mkdir(parents=True)
    return outside


def with_the_same_folders(outside):
    """Makes the folders that a diverted path would lead to."""
    for folder in (outside, outside / "x", outside / "inputs" / "x"):
        (folder / "sub").mkdir(parents=True)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("taken", ["", "inputs", "inputs/x"])
@pytest.mark.parametrize("source", ["folder:f", "key:shared/one", "process:made", "web"])
@on_every_store
async def test_no_input_is_written_through_a_link(crowd, web, outside, monkeypatch, source, taken):
    await folder_of(crowd, "f", **{"sub/a": b"one"})
    await crowd.store.put("shared/one", b"one")
    await crowd.worker().start("made", artifacts=2, steps=2)
    worker = crowd.worker(input_keys="shared/", **allowing(web))
    work = worker.manager.parts.workplace.folder

    def swap_all():
        for folder in work.glob("p.*"):
            if not folder.name.endswith(".moved"):
                swap(folder / taken if taken else folder, outside)

    swap_before(monkeypatch, worker.manager.parts.inputs.blobs, "place", swap_all)
    if source.startswith(("folder:", "process:")):
        with_the_same_folders(outside)
    await given(worker, x=f"{web.url}/one" if source == "web" else source)
    assert files_below(outside) == []


async def test_no_file_of_a_checkpoint_is_written_through_a_link(
    crowd, tmp_path, outside, monkeypatch
):
    files = [
        CheckpointFile(path=f"sub/{n}", size=1, sha256=sha256(b"1"), modified_ns=n) for n in (1, 2)
    ]
    checkpoint = Checkpoint(attempt=1, seq=1, files=tuple(files))
    for file in files:
        await crowd.store.put(checkpoint_key("p", checkpoint, file.path), b"1")
    own = OwnFolder(Workplace(tmp_path / "work"), "p.1")
    own.make()

    def swap_all():
        for folder in own.path.glob("resume-*"):
            swap(folder, outside)

    store = crowd.worker().store
    swap_before(monkeypatch, store, "download", swap_all)
    with pytest.raises(OSError, match="is a link"):
        await restore(store, "p", (checkpoint,), own)
    assert files_below(outside) == []
