"""The files of an attempt as the worker reads them, while the job may lay anything in its folder.

Every test runs both ways of opening a folder: `openat2`, and one component at a time.
"""

import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from attempts import own_files
from attempts.own_files import (
    MAX_REFUSED_LISTED,
    MAX_REFUSED_PATH,
    FileWaits,
    NameCount,
    OwnFolder,
    Refusals,
    printable,
)
from worker import beneath
from worker.beneath import FileRefused, opened, remove_tree
from worker.workplace import Workplace

DEEP = 3000
#: Files of a listing, more than any test here makes.
MOST = 1000


@pytest.fixture(params=["openat2", "by parts"], autouse=True)
def _way(request, monkeypatch):
    if request.param == "by parts":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    elif not beneath.has_openat2():
        pytest.skip("this kernel has no openat2")


@pytest.fixture
def own(tmp_path):
    own = OwnFolder(Workplace(tmp_path / "work"), "p.1")
    own.make()
    (own.path / "outputs").mkdir()
    yield own
    own.discard()


@pytest.fixture
def secret(tmp_path):
    """A file of the worker's, beside the attempt's folder and on the same disk."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "secret"
    path.write_text("secret")
    return path


def content(own, path):
    with own.open(path) as file:
        return file.read()


def reasons(listing):
    return {each.path: each.reason for each in listing.refused.listed}


def descriptors_below(folder):
    """Targets of this process's descriptors; others come and go with other tests."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.append(link.readlink())
    return [target for target in targets if target.is_relative_to(folder)]


def deep_folder(within, depth):
    """`depth` folders, each in the one before: longer than any path may be."""
    folder = os.open(within, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


# ---- reading


def test_a_regular_file_is_read(own):
    (own.path / "outputs" / "deep" / "er").mkdir(parents=True)
    (own.path / "outputs" / "deep" / "er" / "x").write_text("x")
    assert content(own, "outputs/deep/er/x") == b"x"
    with pytest.raises(FileNotFoundError):
        own.open("outputs/nothing")


def device_at(path):
    """The null device."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device takes root")


ODD = {
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a pipe": os.mkfifo,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a device": device_at,
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_entry_is_refused_with_its_kind_and_never_waited_for(own, odd):
    kind = " ".join(odd.split()[:2])
    ODD[odd](own.path / "outputs" / "odd")
    (own.path / "outputs" / "good").write_text("good")
    with pytest.raises(FileRefused, match=f"it is {kind}"):
        own.open("outputs/odd")
    listing = own.listing("outputs", MOST)
    assert (listing.files, reasons(listing)) == (["good"], {"odd": f"it is {kind}"})


@pytest.mark.parametrize("part", ["outputs", "outputs/sub"])
def test_no_link_is_followed_in_any_part_of_a_path(own, secret, part):
    if part == "outputs":
        (own.path / part).rmdir()
    (own.path / part).symlink_to(secret.parent)
    with pytest.raises(FileRefused, match="a link"):
        own.open(f"{part}/secret")
    listing = own.listing("outputs", MOST)
    assert listing.files == []
    assert "link" in reasons(listing)["." if part == "outputs" else "sub"]


def test_a_path_cannot_climb_out(own, secret):
    with pytest.raises(FileRefused):
        own.open(f"outputs/../../../{secret.parent.name}/secret")


def test_a_folder_stays_the_same_one_whatever_its_path_comes_to_mean(own, secret):
    (own.path / "outputs" / "secret").write_text("mine")
    own.path.rename(own.path.with_name("moved"))
    own.path.symlink_to(secret.parent.parent)
    assert content(own, "outputs/secret") == b"mine"


def test_what_takes_a_files_place_between_look_and_opening_is_not_read(own, secret, monkeypatch):
    path = own.path / "outputs" / "x"
    path.write_text("mine")
    look = os.stat

    def look_and_swap(name, **options):
        facts = look(name, **options)
        if name == "x":
            path.unlink()
            path.symlink_to(secret)
        return facts

    monkeypatch.setattr(os, "stat", look_and_swap)
    with pytest.raises(FileRefused):
        own.open("outputs/x")


# ---- several names


def test_a_hard_link_to_a_foreign_file_is_refused(own, secret):
    for name in ("x", "y"):
        (own.path / "outputs" / name).hardlink_to(secret)
    for count in (own.names_at_end(), own.names_while_job_lives()):
        with pytest.raises(FileRefused, match="hard link"):
            own.open("outputs/x", count)


def test_a_file_whose_names_all_lie_in_the_folder_is_read(own):
    """As a job has it that links a checkpoint into its outputs, or copies with `cp -l`."""
    (own.path / "work").mkdir()
    (own.path / "work" / "x").write_text("mine")
    (own.path / "outputs" / "y").hardlink_to(own.path / "work" / "x")
    assert own.listing("outputs", MOST).linked
    for count in (own.names_at_end(), own.names_while_job_lives()):
        with own.open("outputs/y", count) as file:
            assert file.read() == b"mine"


def test_without_a_count_a_file_with_several_names_waits_and_no_folder_is_walked(own, monkeypatch):
    """A folder of 100,000 links is not walked for each of them."""
    (own.path / "outputs" / "x").write_text("mine")
    (own.path / "outputs" / "y").hardlink_to(own.path / "outputs" / "x")
    monkeypatch.setattr(own_files, "walk", lambda *_: pytest.fail("a folder was walked"))
    with pytest.raises(FileWaits):
        own.open("outputs/x")


def test_a_name_that_moves_while_names_are_counted_is_not_counted_twice(own, secret, monkeypatch):
    """In two folders it would make up for the name outside. The ctime need not change: the file
    system may stamp the move and the link before it with the same tick."""
    for name in ("a", "b"):
        (own.path / "outputs" / name).mkdir()
    place = own.path / "outputs" / "a" / "x"
    place.hardlink_to(secret)
    walk_all = own_files.walk

    def walk_while_it_moves(folder, root, refuse):
        entries = [*walk_all(folder, root, refuse)]
        moved = place.rename(own.path / "outputs" / "b" / "x")
        yield from entries
        yield from walk_all(folder, root, refuse)
        monkeypatch.setattr(own_files, "walk", walk_all)
        assert moved.stat().st_nlink == 2

    monkeypatch.setattr(own_files, "walk", walk_while_it_moves)
    count = own.names_while_job_lives()
    assert set(count.names.values()) == {2}
    with pytest.raises(FileRefused):
        own.open("outputs/b/x", count)


def test_a_change_within_a_tick_of_the_count_is_taken_for_a_later_one(secret):
    facts = secret.stat()
    inode = (facts.st_dev, facts.st_ino)
    count = NameCount({inode: 1}, unchanged_since_ns=facts.st_ctime_ns)
    assert not count.holds_all_names(facts)
    assert count._replace(unchanged_since_ns=facts.st_ctime_ns + 1).holds_all_names(facts)
    assert count._replace(unchanged_since_ns=None).holds_all_names(facts)


# ---- listing


def test_what_is_refused_is_counted_and_the_first_are_listed(own):
    for number in range(MAX_REFUSED_LISTED + 10):
        (own.path / "outputs" / f"link-{number}").symlink_to("nowhere")
    refused = own.listing("outputs", MOST).refused
    assert (refused.count, len(refused.listed)) == (MAX_REFUSED_LISTED + 10, MAX_REFUSED_LISTED)


def test_files_beyond_the_most_are_counted_as_refused(own):
    for number in range(5):
        (own.path / "outputs" / str(number)).touch()
    listing = own.listing("outputs", 3)
    assert (len(listing.files), listing.refused.count) == (3, 2)
    assert set(reasons(listing).values()) == {"there are more than 3 files"}


def test_a_path_that_is_refused_again_is_not_counted_again():
    """Not even when it is too late to be listed."""
    refused = Refusals()
    for _ in range(2):
        for number in range(MAX_REFUSED_LISTED + 1):
            refused.add(str(number), "it is odd")
    assert refused.count == MAX_REFUSED_LISTED + 1


def test_a_folder_too_deep_for_any_key_is_one_refused_entry(removed_however_deep, own):
    deep_folder(own.path / "outputs", DEEP)
    (own.path / "outputs" / "good").write_text("good")
    listing = own.listing("outputs", MOST)
    assert (listing.files, listing.refused.count) == (["good"], 1)
    assert reasons(listing).popitem()[1] == "its path is too long"


def test_a_folder_that_is_missing_lists_as_empty(own):
    assert own.listing("nothing", MOST).files == []


@pytest.mark.parametrize(
    ("path", "shown"),
    [("", "."), ("a\nb", "a\nb"), ("\udcff", "\\xff"), ("x" * 999, "x" * 199 + "…")],
)
def test_any_path_can_be_shown(path, shown):
    assert printable(path) == shown
    assert len(shown) <= MAX_REFUSED_PATH


# ---- writing


def test_nothing_is_written_or_removed_through_a_link(own, secret):
    (own.path / "logs").symlink_to(secret.parent)
    with pytest.raises(FileRefused):
        own.write("logs", "new", b"")
    own.remove("logs/secret")
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_a_link_in_a_files_place_is_not_written_to(own, secret):
    own.write("logs", "first", b"1")
    (own.path / "logs" / "second").symlink_to(secret)
    with pytest.raises(FileExistsError):
        own.write("logs", "second", b"2")
    assert secret.read_text() == "secret"
    assert own.read("logs/first", 1) == b"1"


def test_a_target_makes_its_folders_and_stays_in_them_whatever_takes_their_place(own, secret):
    with own.target("inputs/deep/x") as path:
        (own.path / "inputs").rename(own.path / "moved")
        (own.path / "inputs").symlink_to(secret.parent)
        (secret.parent / "deep").mkdir()
        path.write_text("x")
    assert own.read("moved/deep/x", 1) == b"x"
    assert not list((secret.parent / "deep").iterdir())


@pytest.mark.parametrize("path", ["link/x", "link/deep/x", "outputs/../../x"])
def test_no_target_lies_behind_a_link_or_outside(own, secret, path):
    (own.path / "link").symlink_to(secret.parent)
    with pytest.raises(FileRefused), own.target(path):
        pass
    assert [each.name for each in secret.parent.iterdir()] == ["secret"]


def test_a_file_that_grew_is_not_read_into_memory(own):
    own.write("logs", "x", b"1")
    os.truncate(own.path / "logs" / "x", 1 << 40)
    with pytest.raises(OSError, match="changed"):
        own.read("logs/x", 1)


# ---- removing


def test_removing_follows_no_link_and_opens_no_pipe(own, secret):
    folder = own.path / "sealed"
    folder.mkdir()
    (folder / "link").symlink_to(secret.parent)
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    (folder / "sub" / "x").touch()
    own.remove("sealed")
    assert not folder.exists()
    assert secret.exists()


@pytest.mark.parametrize("taken", ["link", "pipe"])
def test_what_took_the_folders_place_is_removed_itself(own, secret, taken):
    own.path.rename(own.path.with_name("moved"))
    if taken == "link":
        own.path.symlink_to(secret.parent)
    else:
        os.mkfifo(own.path)
    own.discard()
    assert not os.path.lexists(own.path)
    assert secret.exists()


def test_a_folder_that_the_job_renamed_is_emptied(own):
    """Only the open descriptor still leads to it."""
    moved = own.path.with_name("moved")
    (own.path / "outputs" / "big").write_bytes(b"x" * 1000)
    own.path.rename(moved)
    own.discard()
    assert list(moved.iterdir()) == []


def test_a_removal_that_is_killed_leaves_nothing_beside_the_folder(tmp_path, monkeypatch):
    """Nested folders wait for their turn inside of it."""
    (tmp_path / "top" / "a" / "b").mkdir(parents=True)
    remove, seen = os.rmdir, []

    def look_and_remove(name, **options):
        seen.append([path.name for path in tmp_path.iterdir()])
        remove(name, **options)

    monkeypatch.setattr(os, "rmdir", look_and_remove)
    with opened(tmp_path) as within:
        assert remove_tree("top", within)
    assert seen == [["top"]] * 3


REMOVE_CLOSED = """
import ctypes, os, sys
from worker.beneath import remove_tree
os.setuid(int(sys.argv[1]))
PR_SET_DUMPABLE = 4  # else /proc/self belongs to root
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
os.makedirs("top/closed/inner")
for folder in ("top/closed/inner", "top/closed", "top"):
    os.chmod(folder, 0)
assert remove_tree("top", os.open(".", os.O_RDONLY))
"""


def test_a_folder_that_denies_all_access_is_removed(tmp_path):
    """By a user that is not root, as root may do anything in any folder."""
    user = 65534 if os.getuid() == 0 else os.getuid()
    os.chown(tmp_path, user, -1)
    environment = {"PYTHONPATH": str(Path(beneath.__file__).parent.parent)}
    command = [sys.executable, "-c", REMOVE_CLOSED, str(user)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_too_deep_to_be_removed(removed_however_deep, tmp_path):
    (tmp_path / "top").mkdir()
    deep_folder(tmp_path / "top", DEEP)
    with opened(tmp_path) as within:
        assert remove_tree("top", within)
    assert list(tmp_path.iterdir()) == []


# ---- the folder itself


def test_a_workplace_that_was_replaced_takes_no_more_attempts(tmp_path, secret):
    """By a link that an earlier job laid in its place."""
    workplace = Workplace(tmp_path / "work")
    workplace.claim()
    workplace.folder.rename(tmp_path / "moved")
    workplace.folder.symlink_to(secret.parent)
    own = OwnFolder(workplace, "p.1")
    with pytest.raises(OSError, match="No such file"):
        own.make()
    own.discard()
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_who_comes_after_the_end_finds_no_folder(own):
    own.discard()
    own.discard()
    assert not own.path.exists()
    with pytest.raises(FileNotFoundError):
        own.open("outputs/x")


def test_a_reader_keeps_its_folder_while_another_thread_discards_it(own):
    """Its descriptor's number must not come to mean another folder."""
    with own._folder("outputs") as folder:
        thread = threading.Thread(target=own.discard)
        thread.start()
        thread.join()
        assert list(Path(f"/proc/self/fd/{folder}").iterdir()) == []


def test_no_descriptor_stays_open(tmp_path, secret):
    workplace = Workplace(tmp_path / "work")
    own = OwnFolder(workplace, "p.1")
    own.make()
    (own.path / "outputs").mkdir()
    (own.path / "outputs" / "x").hardlink_to(secret)
    os.mkfifo(own.path / "outputs" / "pipe")
    own.listing("outputs", MOST)
    count = own.names_at_end()
    for path in ("outputs/x", "outputs/pipe", "outputs/none", "none/x", "outputs/x/y"):
        with pytest.raises((FileRefused, FileNotFoundError)):
            own.open(path, count)
    own.discard()
    assert descriptors_below(tmp_path) == [workplace.folder]
