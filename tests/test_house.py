"""The rooms of the house, and the one direction in which they may know each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: From the street to the cellar. A room may import what stands below it, and its own.
ROOMS = [
    {"rp_handler"},
    {"cli"},
    {"api"},
    {"health"},
    {"process_manager"},
    {"upkeep"},
    {"replies"},
    {"processes"},
    {"inputs"},
    {"stores"},
    {"storage"},
    {"settings", "worker_log", "meter", "gpus"},
    {"redaction"},
    {"jobs"},
    {"programs"},
    {"child"},
    {"utils"},
]
#: The same inside the room where the life of a process is.
PROCESSES = [
    {"starting"},
    {"recovery", "cancelling"},
    {"lookup", "log_reading"},
    {"why", "runs"},
    {"run", "links", "removal", "settling"},
    {"archive", "inputs"},
    {"uploads", "index", "logs", "phases"},
    {"lease", "notes"},
    {"kept_models"},
    {"own_files"},
    {
        "beneath",
        "delivery",
        "failures",
        "gpu_shares",
        "manifest",
        "reading",
        "record_cache",
        "slots",
        "workplace",
    },
    {"record"},
]
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
PACKAGES = ["api", "cli", "inputs", "processes", "stores", "upkeep", *CHILDS_ROOMS]


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


def level_of(room, rooms):
    return next((level for level, names in enumerate(rooms) if room in names), None)


@pytest.mark.parametrize("path", modules())
def test_arrows_between_rooms_never_turn_back(path):
    level = level_of(room_of(path), ROOMS)
    assert level is not None, f"{path.name} has no room: give it one in ROOMS"
    for name in imports_of(path):
        other = name.split(".")[0]
        if other != room_of(path) and (below := level_of(other, ROOMS)) is not None:
            assert below > level or path.stem == "storage", f"{path.name} must not know {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "processes").glob("[a-z]*.py")), ids=str)
def test_arrows_inside_the_process_room_never_turn_back(path):
    level = level_of(path.stem, PROCESSES)
    assert level is not None, f"{path.name} has no place: give it one in PROCESSES"
    for name in imports_of(path):
        if name.startswith("processes."):
            below = level_of(name.split(".")[1], PROCESSES)
            assert below >= level, f"{path.name} must not know {name}"


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
