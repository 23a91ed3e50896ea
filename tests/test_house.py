"""The rooms of the house, and the one direction in which they may know each other."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: A room may import those after it and none before. `twin` and `client` stand beside the house.
ROOMS = [
    "rp_handler",
    "cli",
    "api",
    "health",
    "retention",
    "process_manager",
    "processes",
    "attempts",
    "records",
    "inputs",
    "stores",
    "storage",
    "worker",
    "jobs",
    "programs",
    "child",
    "utils",
]
#: The modules at the root; every other module has a room.
ROOT_MODULES = {"rp_handler", "process_manager", "storage", "utils"}
#: Rooms above the process manager that reach `processes` through it.
ABOVE_THE_DOOR = ["rp_handler", "cli", "api"]
#: Who may import what is heavy or dangerous.
KEEPERS = {
    "runpod": {"rp_handler"},
    "boto3": {"stores"},
    "botocore": {"stores"},
    "torch": {"jobs", "child"},
}
#: A job reads and writes folders and speaks through its context: the worker moves bytes and holds
#: credentials.
CHILDS_ROOMS = ["jobs", "programs", "child"]
PACKAGES = [room for room in ROOMS if room not in ROOT_MODULES]


def modules():
    paths = [*ROOT.glob("*.py"), *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))]
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in sorted(paths)]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """Dotted names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_fifth_module_stands_at_the_root():
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_MODULES


@pytest.mark.parametrize("path", modules())
def test_arrows_between_rooms_never_turn_back(path):
    room = room_of(path)
    above = set(ROOMS[: ROOMS.index(room)])
    assert above.isdisjoint(name.split(".")[0] for name in imports_of(path))


@pytest.mark.parametrize("room", PACKAGES)
def test_the_modules_of_a_room_import_one_another_in_no_circle(room):
    imports = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): set(imports_of(path))
        for path in (ROOT / room).rglob("*.py")
    }
    within = TopologicalSorter({name: imports[name] & set(imports) for name in imports})
    assert set(within.static_order()) == set(imports)  # raises CycleError


@pytest.mark.parametrize("room", ABOVE_THE_DOOR)
def test_the_process_manager_is_the_one_door_to_its_parts(room):
    for path in (p.values[0] for p in modules() if room_of(p.values[0]) == room):
        assert "processes" not in {name.split(".")[0] for name in imports_of(path)}, path


@pytest.mark.parametrize("path", modules())
def test_only_its_keeper_imports_a_heavy_library(path):
    imported = {name.split(".")[0] for name in imports_of(path)}
    for library, keepers in KEEPERS.items():
        assert library not in imported or room_of(path) in keepers


@pytest.mark.parametrize("room", CHILDS_ROOMS)
def test_a_job_never_sees_the_store_or_its_keys(room):
    forbidden = {"storage", "stores", "boto3", "botocore", "runpod"}
    for path in (ROOT / room).rglob("*.py"):
        assert forbidden.isdisjoint(name.split(".")[0] for name in imports_of(path)), path


def test_the_worker_starts_without_torch_and_without_boto3():
    """Both take a second or so; one is the child's, the other is for buckets."""
    code = "import sys, rp_handler; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert {"torch", "boto3", "matplotlib", "numpy"}.isdisjoint(loaded.stdout.split())
