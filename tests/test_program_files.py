"""A program lays links where the worker is to copy its files. No program is run here.

The looks before a copy are tested alone, as where the kernel cannot confine; then the confining.
"""

import pytest

from child.confine import confined
from child.context import JobContext, JobFailed
from programs import files
from programs.declaration import Checkpoints, Output
from programs.files import CheckpointFiles, OutputFiles
from tests.landlock import needs_landlock


@pytest.fixture
def victim(tmp_path):
    """A folder of somebody else, with one file."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "theirs").write_text("theirs")
    return tmp_path / "victim"


@pytest.fixture
def context(tmp_path):
    return JobContext(tmp_path / "attempt")


@pytest.fixture
def folders(context):
    work = context.outputs.parent / "work"
    work.mkdir()
    return {"work": work, "outputs": context.outputs, "checkpoints": context.checkpoints}


def untouched(victim):
    return [path.name for path in victim.iterdir()] == ["theirs"]


def made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("made")


@pytest.mark.parametrize("path", ["sub/evil.py", "sub/below/evil.py"])
def test_an_output_is_not_brought_through_a_link(context, folders, victim, path):
    outputs = OutputFiles(context, folders, (Output(path="sub/*"),))
    made(folders["work"] / path)
    (context.outputs / "sub").symlink_to(victim)
    with pytest.raises(JobFailed) as failed:
        outputs.collect()
    assert failed.value.code == "output_missing"
    assert untouched(victim)


def test_an_output_is_not_brought_through_the_outputs_themselves(context, folders, victim):
    outputs = OutputFiles(context, folders, (Output(path="evil.py"),))
    made(folders["work"] / "evil.py")
    context.outputs.rmdir()
    context.outputs.symlink_to(victim)
    with pytest.raises(JobFailed):
        outputs.collect()
    assert untouched(victim)


def test_an_output_takes_the_place_of_a_link_that_leads_nowhere(
    context, folders, victim, monkeypatch
):
    """Also on a file system that has no second names, where it is copied."""
    monkeypatch.setattr("pathlib.Path.hardlink_to", _no_second_names)
    outputs = OutputFiles(context, folders, (Output(path="evil.py"),))
    made(folders["work"] / "evil.py")
    (context.outputs / "evil.py").symlink_to(victim / "evil.py")
    assert outputs.collect() == 1
    assert (context.outputs / "evil.py").read_text() == "made"
    assert untouched(victim)


def _no_second_names(*_):
    raise OSError


def checkpoint_files(context, folders):
    """With a checkpoint that is there to be handed over."""
    files = CheckpointFiles(context, folders, Checkpoints(path="c.pt"))
    made(folders["work"] / "c.pt")
    return files


def test_a_link_where_checkpoints_are_made_ready_is_removed(context, folders, victim):
    files = checkpoint_files(context, folders)
    (context.checkpoints / ".handed").symlink_to(victim)
    files.hand_over(all_finished=True)
    assert untouched(victim)
    [handed] = context.outputs.parent.glob("sealed/*/.handed/work/c.pt")
    assert handed.read_text() == "made"


@pytest.mark.parametrize("there", [[], [".handed"]])
def test_nothing_is_handed_over_through_the_checkpoints_themselves(
    context, folders, tmp_path, capfd, there
):
    files = checkpoint_files(context, folders)
    context.checkpoints.rmdir()
    victim = tmp_path / "theirs"
    for name in ("", *there):
        (victim / name).mkdir()
    context.checkpoints.symlink_to(victim)
    files.hand_over(all_finished=True)
    assert [path.name for path in victim.iterdir()] == there
    assert "was not handed over: a link leads" in capfd.readouterr().out


def test_more_files_than_can_be_looked_at_are_a_failure_and_not_left_out(
    context, folders, monkeypatch
):
    monkeypatch.setattr(files, "FILES_LIMIT", 3)
    outputs = OutputFiles(context, folders, (Output(path="*.png"),))
    for number in range(3):
        made(folders["work"] / f"{number}.png")
    assert outputs.collect() == 3
    made(folders["work"] / "3.png")
    with pytest.raises(JobFailed) as failed:
        outputs.collect()
    assert failed.value.code == "too_many_files"
    assert "more than 3 files in its folder 'work'" in str(failed.value)


def test_only_what_a_checkpoint_may_hold_is_put_back(context, victim, tmp_path):
    """Run by hand the inputs are a link to somebody's own files (`jobs.cli.local_run`)."""
    for name in ("work/c.pt", "inputs/evil.py", "outputs/evil.py"):
        made(tmp_path / "saved" / name)
    context.inputs.rmdir()
    context.inputs.symlink_to(victim)
    resuming = JobContext(tmp_path / "attempt", resume_from=tmp_path / "saved")
    work = context.outputs.parent / "work"
    work.mkdir()
    folders = {
        "work": work,
        "inputs": resuming.inputs,
        "outputs": resuming.outputs,
        "checkpoints": resuming.checkpoints,
    }
    files = CheckpointFiles(resuming, folders, Checkpoints(path="c.pt"))
    assert files.resume == work / "c.pt"
    assert untouched(victim)
    assert list(resuming.outputs.iterdir()) == []


@needs_landlock
def test_whoever_looks_too_early_is_still_confined(context, victim):
    """What no look before a copy can see: the link is laid between the two."""
    with pytest.raises(PermissionError):
        confined([context.outputs.parent], (victim / "evil.py").touch)
    assert untouched(victim)
    (victim / "after").touch()  # this thread is not confined


@needs_landlock
def test_a_checkpoint_is_not_moved_through_a_link(context, folders, victim, capfd):
    """Where handed over ones are kept there is no look: the confining holds it."""
    files = checkpoint_files(context, folders)
    root = context.outputs.parent
    (root / "sealed").rmdir()
    (root / "sealed").symlink_to(victim)
    confined([root], lambda: files.hand_over(all_finished=True))
    assert untouched(victim)
    assert "was not handed over" in capfd.readouterr().out
