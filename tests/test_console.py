"""A process as a person at a terminal sees it."""

import pytest

from cli.console import _draw
from jobs.cli.progress import new_bar

LOSS = {"loss": 0.123456, "learning_rate": 0.005}


def drawn(columns, **changes):
    """The line that a terminal of so many columns shows."""
    view = {"kind": "train_diffusion", "status": "running", "phase": "running", "attempt": 1}
    with new_bar("starting") as bar:
        bar.dynamic_ncols = lambda _: (columns, 25)
        _draw(bar, view | {"progress": None} | changes)
        return str(bar)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_has_room_whatever_the_figures(columns):
    progress = {"step": 990, "total": 1000, "message": "training", "metrics": LOSS}
    line = drawn(columns, progress=progress)
    assert len(line) <= columns
    assert len(line.split("|")[1]) >= 10
    assert ("learning_rate" in line) == (columns == 120)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"phase": "inputs", "status": "queued"}, "train_diffusion fetching inputs"),
        ({"phase": "queued", "status": "queued"}, "train_diffusion queued"),
        ({"phase": "startup", "attempt": 2}, "train_diffusion starting (attempt 2)"),
        ({"phase": "upload"}, "train_diffusion uploading"),
    ],
)
def test_before_the_first_step_the_phase_is_named_and_no_bar_is_drawn(changes, label):
    assert drawn(80, **changes) == f"{label} [00:00]"
