"""Every time in a reply has one shape: RFC 3339, UTC, milliseconds."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from utils import timestamp

SHAPE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
CET = timezone(timedelta(hours=1))
#: Fields that hold a time.
IS_TIME = re.compile(r"(.*_)?at")


def times(value, name=""):
    """All values under a name like a time's, wherever they stand."""
    match value:
        case dict():
            return [each for key, inner in value.items() for each in times(inner, key)]
        case list():
            return [each for inner in value for each in times(inner, name)]
        case str() if IS_TIME.fullmatch(name):
            return [value]
    return []


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (datetime(2026, 12, 1, 10, 0, 0, 999_999, UTC), "2026-12-01T10:00:00.999Z"),
        (
            datetime(2026, 12, 1, 10, tzinfo=timezone(timedelta(hours=2))),
            "2026-12-01T08:00:00.000Z",
        ),
    ],
)
def test_a_time_is_utc_with_milliseconds(at, shown):
    assert timestamp(at) == shown


async def test_all_replies_show_times_in_it(crowd):
    worker = crowd.worker()
    replies = [
        await worker.start("p", steps=1, artifacts=1),
        await worker("process_status", process_id="p"),
        await worker("processes"),
        await worker("download", process_id="p"),
        await worker("upload", folder="f", chunk={"path": "a", "offset": 0, "data": "YQ=="}),
        await worker("list_files", folder="f"),
        await worker("health"),
        await worker("metrics"),
    ]
    shown = [each for reply in replies for each in times(reply)]
    assert len(shown) > 10
    assert [each for each in shown if not SHAPE.fullmatch(each)] == []
