"""What a job prints, read on any worker: while it prints, after it ended, and through what goes
wrong. The lines are the test's own: the job prints what comes through a named pipe."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from attempts import log_writing as logs
from child.job_log import LINE_LIMIT, WINDOW, Lines
from processes import log_reading
from tests.crowd import on_every_store, until
from tests.servers import keys_of
from worker.redaction import MASK, Redactor

SECRET = "correct-horse-battery-staple"
LOGS = "/logs/"


pytestmark = pytest.mark.usefixtures("input_kinds")


@pytest.fixture
def quick(monkeypatch):
    """Logs are stored and looked at often."""
    monkeypatch.setattr(logs, "LOG_SECONDS", 0.1)
    monkeypatch.setattr(log_reading, "LOOK_SECONDS", 0.05)


@pytest.fixture
def small(quick, monkeypatch):
    """Segments hold a few lines, and so does the tail: whoever reads needs both."""
    monkeypatch.setattr(logs, "SEGMENT_BYTES", 600)
    monkeypatch.setattr(logs, "TAIL_BYTES", 200)
    monkeypatch.setattr(logs, "TAIL_LINES", 3)


class Printer:
    """What it is told to say, the job prints."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._pipe = os.open(path, os.O_RDWR)
        self._said = 0

    def say(self, text):
        os.write(self._pipe, text.encode())

    def count(self, lines):
        """So many more lines, each of which says its number."""
        first = self._said + 1
        self._said += lines
        self.say("".join(f"line {number}\n" for number in range(first, self._said + 1)))

    def end(self):
        """The job ends when it has printed all."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


@pytest.fixture
def printer(tmp_path):
    printer = Printer(tmp_path / "said")
    yield printer
    printer.end()


def prints(worker, printer, process_id="p"):
    """Begin a process that prints what `printer` says; the task of its start."""
    task = asyncio.create_task(
        worker("start", kind="print_out", process_id=process_id, params={"path": str(printer.path)})
    )
    worker.held.append(task)
    return task


async def logs_when(worker, condition, **fields):
    """The reply of `logs` once it meets the condition."""
    while True:
        reply = await worker("logs", process_id="p", **fields)
        if "error" not in reply and condition(reply):
            return reply
        await asyncio.sleep(0.02)


async def printed(worker, count, **fields):
    """The newest lines as `worker` sees them, once there are `count` in all."""
    return await logs_when(
        worker, lambda r: r["lines"] and r["first_line"] + len(r["lines"]) > count, **fields
    )


async def followed(worker, cursor="1:0", **fields):
    """All lines from there to the end, by attempt and number; each has come once."""
    seen = {}
    while cursor is not None:
        reply = await worker("logs", process_id="p", cursor=cursor, wait_seconds=30, **fields)
        assert "error" not in reply, reply
        for number, line in enumerate(reply["lines"], reply["first_line"] or 0):
            assert (reply["attempt"], number) not in seen
            seen[reply["attempt"], number] = line
        cursor = reply["next_cursor"]
        assert reply["ended"] == (cursor is None)
    return seen


def counted(lines, attempt=1):
    return {(attempt, number): f"line {number}" for number in range(1, lines + 1)}


def asked_of_logs(worker):
    return [call for call in worker.store.calls if LOGS in call.key]


def bytes_in(folder):
    """What its files take; some may vanish meanwhile."""
    sizes = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            sizes += path.stat().st_size
    return sizes


def with_secret(crowd):
    """A worker that knows a secret, without the net that masks whole replies once more."""
    worker = crowd.worker(redactor=Redactor([SECRET]))
    worker.handler._redactor = Redactor()
    return worker


async def all_stored(crowd):
    """Every byte of every object."""
    return b"".join([(await crowd.store.get(key)).data for key in await keys_of(crowd.store)])


# ---- while it runs


@on_every_store
async def test_a_line_is_seen_by_another_worker_within_10_seconds(crowd, printer):
    """At the worker's real pace."""
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    printer.say("one\n")
    await printed(owner, 1)
    await printed(other, 1)  # so that the next line has the longest way
    said = time.monotonic()
    printer.say("two\n")
    reply = await other("logs", process_id="p", cursor="1:1", wait_seconds=30)
    assert time.monotonic() - said < 10
    assert reply["lines"] == ["two"]
    assert (reply["status"], reply["ended"]) == ("running", False)


async def test_the_owner_tells_a_line_at_once_and_asks_nobody(crowd, printer):
    owner = crowd.worker()
    prints(owner, printer)
    printer.count(3)
    await printed(owner, 3)
    owner.store.forget_calls()
    waiting = asyncio.create_task(owner("logs", process_id="p", cursor="1:3", wait_seconds=30))
    await asyncio.sleep(0)
    printer.count(1)
    reply = await waiting
    assert (reply["lines"], reply["first_line"]) == (["line 4"], 4)
    assert not [call for call in asked_of_logs(owner) if call.name != "put"]


@on_every_store
async def test_a_cursor_leads_to_every_line_once_while_the_log_grows(crowd, printer, small):
    """On the owner and elsewhere, over segments and the open end."""
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    printer.count(1)
    await printed(owner, 1)
    readers = [asyncio.create_task(followed(worker)) for worker in (owner, other)]
    for _ in range(20):
        printer.count(37)
        await asyncio.sleep(0.05)
    printer.end()
    for reader in readers:
        assert await reader == counted(741)
    assert other.store.asked("get", key=f"{LOGS}0000")
    assert len(await keys_of(crowd.store, "processes/p/attempts/1/logs/")) > 3


@on_every_store
async def test_the_newest_lines_are_the_default_and_as_many_as_one_likes(crowd, printer, small):
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    for _ in range(5):
        printer.count(100)
        await asyncio.sleep(0.15)
    for worker in (owner, other):
        await printed(worker, 500)
        reply = await worker("logs", process_id="p")
        assert (reply["first_line"], len(reply["lines"])) == (401, 100)
        assert reply["next_cursor"] == "1:500"
        reply = await worker("logs", process_id="p", tail=333)
        assert (reply["lines"][0], reply["lines"][-1]) == ("line 168", "line 500")
        reply = await worker("logs", process_id="p", tail=10_000)
        assert reply["first_line"] == 1


async def test_whoever_looks_elsewhere_makes_one_request_a_look(crowd, printer, quick):
    """If nothing is new the store says only that."""
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    printer.count(500)
    await printed(other, 500)
    other.store.forget_calls()
    await other("logs", process_id="p", cursor="1:500", wait_seconds=0.5)
    calls = asked_of_logs(other)
    assert len(calls) > 2
    assert {(call.name, call.key.rpartition("/")[2]) for call in calls} == {("get", "tail.txt")}


async def test_nothing_is_written_while_nothing_is_printed(crowd, printer, quick):
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    printer.count(3)
    await printed(other, 3)
    owner.store.forget_calls()
    sends = owner.runs()[0].log._send
    for _ in range(3):
        await sends()
    assert asked_of_logs(owner) == []


@on_every_store
async def test_a_wait_ends_with_the_process(crowd, printer, quick):
    owner, other = crowd.worker(), crowd.worker()
    start = prints(owner, printer)
    printer.count(1)
    await printed(other, 1)
    waiting = [
        asyncio.create_task(worker("logs", process_id="p", cursor="1:1", wait_seconds=60))
        for worker in (owner, other)
    ]
    other.store.forget_calls()
    await until(lambda: len(asked_of_logs(other)) >= 3)
    assert not any(task.done() for task in waiting)
    printer.end()
    for task in waiting:
        reply = await task
        assert (reply["lines"], reply["first_line"]) == ([], None)
        assert (reply["ended"], reply["next_cursor"]) == (True, None)
        assert reply["status"] == "completed"
    await start


async def test_a_progress_bar_is_seen_though_its_line_has_not_ended(crowd, printer, quick):
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    printer.say("begin\n 10%\r 20%\r")
    for worker in (owner, other):
        reply = await logs_when(worker, lambda reply: reply["unfinished"])
        assert (reply["lines"], reply["unfinished"]) == (["begin"], " 20%")
    printer.say("done\n")
    assert (await printed(other, 2, cursor=1))["lines"] == ["done"]


async def test_the_link_shows_a_person_the_newest_lines(crowd, printer, quick):
    owner = crowd.worker()
    prints(owner, printer)
    printer.count(5)
    await printed(crowd.worker(), 5)
    view = await owner("process_status", process_id="p")
    shown = Path(view["links"]["log"].removeprefix("file://")).read_text()
    assert shown.splitlines() == ["# lines 1 to 5", *(f"line {n}" for n in range(1, 6))]


# ---- afterwards


@on_every_store
async def test_the_log_of_an_ended_process_is_whole_on_any_worker(crowd, printer, small):
    owner = crowd.worker()
    start = prints(owner, printer)
    printer.count(300)
    await printed(owner, 300)
    printer.say("no newline at the end")
    printer.end()
    await start
    assert await followed(crowd.worker()) == counted(300) | {(1, 301): "no newline at the end"}


async def test_what_a_failed_job_printed_last_is_there_when_it_is_said_to_have_failed(crowd):
    owner, other = crowd.worker(), crowd.worker()
    start = owner.starts("p", fail_at=1)
    await crowd.stored("p", "failed")
    reply = await other("logs", process_id="p")
    assert reply["lines"][-1] == "RuntimeError: asked to fail at step 1"
    assert reply["ended"]
    assert (await start)["status"] == "failed"
    writes = [call.key.rpartition("/")[2] for call in owner.store.asked("put", "replace", key="p/")]
    assert writes[-2:] == ["tail.txt", "record.json"]


@on_every_store
async def test_each_attempt_has_a_log_of_its_own(crowd, printer, small):
    """Who follows the process goes on from one to the next."""
    first, second, third = crowd.worker(), crowd.heir(), crowd.worker()
    prints(first, printer)
    printer.count(100)
    await printed(third, 100)
    follower = asyncio.create_task(followed(third))
    await first.die()
    start = prints(second, printer)
    await second.until("p", lambda view: view["attempt"] == 2 and view["status"] == "running")
    printer.say("again\n")
    await printed(second, 1, attempt=2)
    printer.end()
    assert (await start)["status"] == "completed"
    assert await follower == counted(100) | {(2, 1): "again"}
    old = await third("logs", process_id="p", attempt=1, tail=2)
    assert (old["lines"], old["ended"]) == (["line 99", "line 100"], True)
    assert (await third("logs", process_id="p"))["lines"] == ["again"]
    assert await followed(third, attempt=1) == counted(100)


async def test_a_log_is_deleted_with_its_process(crowd, printer, small):
    owner = crowd.worker()
    start = prints(owner, printer)
    printer.count(200)
    await printed(owner, 200)
    printer.end()
    await start
    await owner("delete", process_id="p", confirm="p")
    assert await keys_of(crowd.store, "processes/p/attempts/") == []


# ---- what cannot be told


async def test_what_is_not_there_is_said_with_a_code(crowd):
    worker = crowd.worker()
    await worker.start("p")
    assert (await worker("logs", process_id="q"))["error"]["code"] == "unknown_process"
    for field in ({"attempt": 2}, {"cursor": "2:0"}):
        reply = await worker("logs", process_id="p", **field)
        assert reply["error"]["code"] == "unknown_attempt"


@pytest.mark.parametrize(
    "fields",
    [
        {"cursor": ":7"},
        {"cursor": -1},
        {"cursor": "0:1"},
        {"cursor": "1:2", "attempt": 2},
        {"cursor": 1, "tail": 5},
        {"tail": 10_001},
        {"wait_seconds": 301},
    ],
)
async def test_a_place_that_cannot_be_is_refused(crowd, fields):
    reply = await crowd.worker()("logs", process_id="p", **fields)
    assert reply["error"]["code"] == "invalid_request"


async def test_a_process_that_prints_nothing_has_an_empty_log(crowd):
    """An archive has no job that could."""
    worker = crowd.worker()
    await worker.start("p", artifacts=1)
    await worker("bulk_download", archive=True, process_ids=["p"], process_id="zip")
    for process_id in ("p", "zip"):
        reply = await crowd.worker()("logs", process_id=process_id)
        assert (reply["lines"], reply["left_out"], reply["ended"]) == ([], 0, True)
    assert not [key for key in await keys_of(crowd.store) if LOGS in key]


# ---- floods, long lines


async def test_a_flood_costs_few_requests_and_bounded_disk_and_memory(crowd):
    """At the real pace: 256 MB in seconds, of which the beginning and the end are kept."""
    owner = crowd.worker()
    await owner.start("warm")
    before, most = psutil.Process().memory_info().rss, 0
    began = time.monotonic()
    start = asyncio.create_task(
        owner("start", kind="print_much", process_id="p", params={"megabytes": 256})
    )
    while not start.done():
        most = max(most, psutil.Process().memory_info().rss - before)
        await asyncio.sleep(0.02)
    assert (await start)["status"] == "completed"
    intervals = 1 + (time.monotonic() - began) / logs.LOG_SECONDS
    assert len(asked_of_logs(owner)) <= 4 * intervals
    assert most < 32 << 20
    lines = 256 * 16384
    newest = await crowd.worker()("logs", process_id="p")
    assert newest["lines"][-1].startswith(f"{lines} .")
    reply = await crowd.worker()("logs", process_id="p", cursor=0)
    assert reply["lines"][0].startswith("1 .")
    end = len(reply["lines"])
    after = await crowd.worker()("logs", process_id="p", cursor=end)
    assert after["left_out"] == after["first_line"] - end - 1 > 0


async def test_of_a_long_flood_no_more_is_kept_than_the_settings_say(crowd, quick):
    owner = crowd.worker(log_bytes=1 << 20)
    start = asyncio.create_task(
        owner("start", kind="print_much", process_id="p", params={"megabytes": 128})
    )
    most = 0
    while not start.done():
        for run in owner.runs():
            most = max(most, await asyncio.to_thread(bytes_in, run.log._folder.path / "logs"))
        await asyncio.sleep(0.01)
    assert (await start)["status"] == "completed"
    stored = await crowd.store.list("processes/p/attempts/1/logs/")
    assert sum(row.size for row in stored.objects) <= 1 << 20
    assert 0 < most < (1 << 20) + 4 * WINDOW
    assert owner.store.asked("delete", key=LOGS)
    other = crowd.worker()
    assert (await other("logs", process_id="p", cursor=0))["lines"][0].startswith("1 .")
    newest = (await other("logs", process_id="p"))["lines"][-1]
    assert newest.startswith(f"{128 * 16384} .")


async def test_a_long_line_is_cut_with_a_mark(crowd, printer, quick):
    owner, other = crowd.worker(), crowd.worker()
    prints(owner, printer)
    await owner.seen("p", "running")
    await asyncio.to_thread(printer.say, "x" * 100_000 + "\n")
    for worker in (owner, other):
        [line] = (await printed(worker, 1))["lines"]
        assert line == "x" * LINE_LIMIT + f"... [{100_000 - LINE_LIMIT} bytes cut]"


async def test_a_reply_of_many_long_lines_fits_and_the_rest_comes_by_the_page(crowd, printer):
    owner = crowd.worker()
    prints(owner, printer)
    await owner.seen("p", "running")
    for _ in range(20):
        await asyncio.to_thread(printer.say, ("\x01" * LINE_LIMIT + "\n") * 8)
        await owner.runs()[0].log._send()
    await printed(owner, 160)
    reply = await owner("logs", process_id="p", tail=10_000)
    assert "error" not in reply
    assert 0 < len(reply["lines"]) < 160
    assert reply["first_line"] + len(reply["lines"]) == 161
    printer.end()
    assert len(await followed(owner)) == 160


# ---- secrets


async def test_no_secret_is_stored_or_told(crowd, printer, small):
    """In mid-line, at a line's cut, in pieces, in a bar, and at the end without a newline."""
    owner, other = with_secret(crowd), crowd.worker()
    start = prints(owner, printer)
    await owner.seen("p", "running")
    printer.say(f"the key is {SECRET} indeed\nhalf of it: {SECRET[:15]}")
    await printed(other, 1)
    printer.say(f"{SECRET[15:]}\n")
    await asyncio.to_thread(printer.say, "x" * (LINE_LIMIT - 9) + SECRET + "y" * 50_000 + "\n")
    printer.say(f" 1% {SECRET}\r 2% {SECRET}\r")
    await logs_when(other, lambda reply: reply["unfinished"])
    printer.say("done\n")
    told = await printed(owner, 4)
    printer.say(f"and {SECRET}")
    printer.end()
    await start
    lines = await followed(other)
    assert lines[1, 1] == f"the key is {MASK} indeed"
    assert lines[1, 2] == f"half of it: {MASK}"
    assert lines[1, 5] == f"and {MASK}"
    stored = await all_stored(crowd)
    assert MASK.encode() in stored
    for text in (stored.decode(), str(told), str(lines)):
        assert SECRET[:8] not in text
        assert SECRET[-8:] not in text


async def test_the_log_tail_of_a_failure_holds_no_secret(crowd):
    owner = with_secret(crowd)
    params = {"path": f"/nowhere/{SECRET}"}
    reply = await owner("start", kind="print_out", process_id="p", params=params)
    [said] = [line for line in reply["failure"]["log_tail"] if "FileNotFoundError" in line]
    assert said.endswith(f"'/nowhere/{MASK}'")


# ---- what goes wrong


@on_every_store
async def test_what_is_printed_while_the_store_is_away_arrives_afterwards(crowd, printer, small):
    owner, other = crowd.worker(), crowd.worker()
    start = prints(owner, printer)
    printer.count(50)
    await printed(other, 50)
    owner.store.away = True
    log = owner.runs()[0].log
    for lines in (150, 250, 350, 450):
        printer.count(100)
        await until(lambda: log._printed.count == lines and not log._printed.pending())  # noqa: B023
    await until(lambda: len(log._unsent) > 1)
    assert (await printed(owner, 450))["next_cursor"] == "1:450"  # its owner knows, store or not
    owner.store.away = False
    await printed(other, 450)
    printer.end()
    await start
    assert await followed(other) == counted(450)


async def test_a_fault_in_keeping_a_log_costs_neither_the_log_nor_the_job(
    crowd, printer, small, monkeypatch, caplog
):
    """Not even one that nobody has thought of."""
    owner, other = crowd.worker(), crowd.worker()
    task = prints(owner, printer)
    printer.count(1)
    await printed(other, 1)
    faults, seal = [], logs.seal

    def broken(*_):
        faults.append(1)
        raise RuntimeError("a fault")

    monkeypatch.setattr(logs, "seal", broken)
    printer.count(1)
    await until(lambda: len(faults) > 1)
    monkeypatch.setattr(logs, "seal", seal)
    printer.count(1)
    await printed(other, 3)
    monkeypatch.setattr(logs, "seal", broken)
    printer.count(1)
    printer.end()
    assert (await task)["status"] == "completed"
    assert "the end of its log was not stored" in caplog.text


async def test_an_end_that_comes_while_the_store_is_away_is_stored_when_it_is_back(
    crowd, printer, monkeypatch
):
    monkeypatch.setattr(logs, "LOG_SECONDS", 3600)  # only the end is stored
    owner = crowd.worker()
    start = prints(owner, printer)
    printer.count(1)
    await printed(owner, 1)
    run = owner.runs()[0]
    owner.store.away = True
    printer.count(1)
    printer.end()
    await until(run._child._gone.done)
    owner.store.forget_calls()
    await until(lambda: len(owner.store.asked("replace", key="record")) >= 2)
    owner.store.away = False
    assert (await start)["status"] == "completed"
    assert await followed(crowd.worker()) == counted(2)


async def test_a_write_whose_answer_is_lost_loses_no_line(crowd, printer, small):
    owner = crowd.worker()
    for nth in (1, 2, 4):
        owner.store.lose_answer("put", LOGS, nth=nth)
    start = prints(owner, printer)
    printer.count(200)
    await printed(owner, 200)
    printer.end()
    await start
    assert await followed(crowd.worker()) == counted(200)


async def test_a_disk_that_takes_no_log_costs_neither_the_job_nor_its_last_words(
    crowd, printer, small
):
    owner, other = crowd.worker(), crowd.worker()
    start = prints(owner, printer)
    await owner.seen("p", "running")
    (owner.runs()[0].log._folder.path / "logs").write_text("in the way")
    printer.count(300)
    await printed(other, 300)
    printer.end()
    assert (await start)["status"] == "completed"
    reply = await other("logs", process_id="p")
    assert reply["lines"][-1] == "line 300"


async def test_who_has_lost_the_process_writes_no_log(crowd, printer):
    owner = crowd.worker()
    prints(owner, printer)
    printer.count(1)
    await printed(owner, 1)
    run = owner.runs()[0]
    async with run.log._sending:  # until now something may have been read and written
        printer.count(1)
        await printed(owner, 2)
        owner.store.forget_calls()
        run.lease.lost.set()
    await run.log._send()
    await asyncio.wait([run.task])
    assert asked_of_logs(owner) == []


async def test_a_segment_that_the_job_rewrites_is_lost_and_never_stored(crowd, printer, small):
    """With as many bytes: some are no text, some are a secret that the redactor has not seen."""
    owner, other = crowd.worker(), crowd.worker()
    start = prints(owner, printer)
    await owner.seen("p", "running")
    log = owner.runs()[0].log
    async with log._sending:
        printer.count(300)
        await printed(owner, 300)
        await log._settle()
        rewritten = [*(log._folder.path / "logs").iterdir()]
        for path in rewritten:
            path.write_bytes(b"\xff" * (path.stat().st_size - 7) + b"secret\n")
    assert rewritten
    printer.say("the end\n")
    printer.end()
    assert (await start)["status"] == "completed"
    reply = await other("logs", process_id="p", cursor=0)
    assert reply["lines"][-1] == "the end"
    assert b"secret" not in await all_stored(crowd)


async def test_a_taken_name_costs_its_segment_alone(crowd, printer, small):
    """A job can guess the name of a segment and make a file of that name before."""
    owner = crowd.worker()
    prints(owner, printer)
    await owner.seen("p", "running")
    log = owner.runs()[0].log
    rows = [Lines(1, ["one"]), Lines(3, ["three"])]
    log._folder.write("logs", "000000000001-000000000001.txt", b"taken")
    assert [segment.first for segment in log._write(rows)] == [3]


def test_a_stored_segment_that_is_no_text_is_readable():
    assert logs.decoded(logs.Segment(1, 1, 2), b"\xff\n").texts == ["\ufffd"]
