"""A result at the last line of a long training is taken, whatever library its numbers are of."""

import numpy as np
import pytest
import torch

from child import ending
from child.context import JobContext
from child.events import FAILURE_LENGTH, MAX_METRICS, MESSAGE_LENGTH, NAME_LENGTH, parsed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (np.array(4), 4),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        ({np.int64(1): np.float32(0.5)}, {1: 0.5}),
        ((1, "x", None, True), [1, "x", None, True]),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_numbers_of_numpy_and_torch_are_taken(value, shown):
    result = ending.checked({"of": [value]})
    assert result == {"of": [shown]}
    assert type(result["of"][0]) is type(shown)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32("nan"), torch.tensor(float("nan"))]
)
def test_a_number_that_json_lacks_becomes_null_and_the_log_says_where(value, capsys):
    assert ending.checked({"loss": [1.0, value]}) == {"loss": [1.0, None]}
    assert "result.loss[1]" in capsys.readouterr().err


def test_progress_takes_such_numbers_too(tmp_path):
    events = []
    context = JobContext(tmp_path, emit=events.append)
    context.progress(np.int64(3), torch.tensor(9), loss=np.float32(0.5), bad=np.float32("nan"))
    [event] = events
    assert (event["step"], event["total"], event["metrics"]) == (3, 9, {"loss": 0.5})
    assert {type(event["step"]), type(event["total"])} == {int}


def test_an_event_is_cut_where_it_arrives():
    """A job may write to the pipe by itself."""
    many = ", ".join(f'"{"m" * 200}{n}": 1' for n in range(300))
    progress = parsed(
        f'{{"event": "progress", "step": 1, "total": null, "message": "{"x" * 9000}", '
        f'"metrics": {{"{"n" * 900}": 1, {many}}}}}'.encode()
    )
    assert len(progress.message) == MESSAGE_LENGTH
    assert len(progress.metrics) <= MAX_METRICS
    assert max(map(len, progress.metrics)) == NAME_LENGTH
    failed = f'{{"event": "failed", "code": "c", "message": "{"x" * 9000}", "retryable": false}}'
    assert len(parsed(failed.encode()).message) == FAILURE_LENGTH
