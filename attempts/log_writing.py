"""The log of an attempt, as its owner keeps it and as it lies in the store.

Below `processes/{id}/attempts/{n}/logs/` there are segments, written once, each named by the
numbers of its first and its last line, and `tail.txt`, written anew while the log grows: the newest
lines, at least those that are in no segment yet. Its first line says which (`# lines 1201 to
1400`). Lines that were left out count: where numbers are missing, lines are.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from attempts.own_files import OwnFolder
from child.job_log import Block, JobLog, Lines
from records.keys import attempt_prefix
from records.lease import Lease, until_answered
from storage import StorageFailure, Store

log = logging.getLogger(__name__)

#: While it grows the log is stored this often. A line is to be seen anywhere within 10 s: the rest
#: is for a slow store and for `log_reading.LOOK_SECONDS`.
LOG_SECONDS = 6.0
#: The open end becomes a segment when it has so many bytes.
SEGMENT_BYTES: Final = 64 << 10
#: What `tail.txt` shows to a person, beside what it must hold: so many lines, in so many bytes.
TAIL_LINES: Final = 200
TAIL_BYTES: Final = 64 << 10
#: Of what may be kept of a log: this share is for its beginning, and when there is too much, so
#: much is removed that there is room for a while.
BEGINNING_SHARE, ROOM_SHARE = 1 / 4, 1 / 8
TAIL_NAME: Final = "tail.txt"
#: Where segments lie in the attempt's folder.
FOLDER: Final = "logs"
TEXT: Final = "text/plain; charset=utf-8"


class Segment(NamedTuple):
    """Lines that are sealed: where, and how many bytes."""

    first: int
    last: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.last:012d}.txt"


class Tail(NamedTuple):
    """What `tail.txt` says."""

    lines: Lines
    #: The line in the making, if it can be told (a progress bar); it has no number yet.
    unfinished: str | None


class LogSeen(NamedTuple):
    """A log as somebody sees it now."""

    segments: Sequence[Segment]
    #: Lines at hand, in order, perhaps also in segments.
    newest: Sequence[Lines]
    unfinished: str | None
    #: Raises ObjectNotFound: the segment was removed meanwhile.
    read: Callable[[Segment], Awaitable[Lines]]


# ---- how it is written down: pure


def logs_prefix(process_id: str, attempt: int) -> str:
    return f"{attempt_prefix(process_id, attempt)}logs/"


def log_tail_key(process_id: str, attempt: int) -> str:
    return f"{logs_prefix(process_id, attempt)}{TAIL_NAME}"


def segment_of(name: str, size: int) -> Segment | None:
    """The segment of that name; None for what is none."""
    numbers = re.fullmatch(r"(\d{12})-(\d{12})\.txt", name)
    return Segment(int(numbers[1]), int(numbers[2]), size) if numbers else None


def encoded(lines: Lines) -> bytes:
    return "".join(f"{text}\n" for text in lines.texts).encode()


def decoded(segment: Segment, data: bytes) -> Lines:
    return Lines(segment.first, data.decode(errors="replace").split("\n")[:-1])


def encoded_tail(tail: Tail) -> bytes:
    head = f"# lines {tail.lines.first} to {tail.lines.last}\n".encode()
    end = f"{tail.unfinished}\n".encode() if tail.unfinished is not None else b""
    return head + encoded(tail.lines) + end


def decoded_tail(data: bytes) -> Tail:
    head, _, text = data.decode(errors="replace").partition("\n")
    numbers = re.fullmatch(r"# lines (\d+) to (\d+)", head)
    if not numbers:  # no worker wrote this
        return Tail(Lines(1, []), None)
    first, last = int(numbers[1]), int(numbers[2])
    texts = text.split("\n")[:-1]
    count = last - first + 1
    return Tail(Lines(first, texts[:count]), texts[count] if len(texts) > count else None)


# ---- what is kept: pure


def joined(rows: Sequence[Lines]) -> list[Lines]:
    """The same lines in as few rows as there are gaps. `rows` are in order and do not overlap."""
    whole: list[Lines] = []
    for row in rows:
        if whole and whole[-1].last + 1 == row.first:
            whole[-1].texts.extend(row.texts)
        elif row.texts:
            whole.append(Lines(row.first, list(row.texts)))
    return whole


def seal(end: Lines, rows: Sequence[Lines]) -> tuple[list[Lines], Lines]:
    """What becomes segments, and the open end that stays, when `rows` come after the open `end`."""
    whole = joined([end, *rows])
    if not whole:
        return [], end
    newest = whole[-1]
    if len(encoded(newest)) < SEGMENT_BYTES:
        return whole[:-1], newest
    return whole, Lines(newest.last + 1, [])


def shown_end(lines: Lines, at_least: int) -> Lines:
    """The newest of `lines` for `tail.txt`: the last `at_least`, and more as a person likes it."""
    count = size = 0
    for text in reversed(lines.texts):
        size += len(text.encode()) + 1
        if count >= at_least and (count >= TAIL_LINES or size > TAIL_BYTES):
            break
        count += 1
    return Lines(lines.last + 1 - count, lines.texts[len(lines.texts) - count :])


def too_many(segments: Sequence[Segment], budget: int) -> list[Segment]:
    """Those to remove, so that no more than `budget` bytes are left: from the middle, oldest first.

    The beginning is the first segments that fill its share. As they stay, it stays the same.
    """
    size = sum(segment.size for segment in segments)
    if size <= budget:
        return []
    removed, beginning = [], 0.0
    for segment in segments:
        if beginning < budget * BEGINNING_SHARE:
            beginning += segment.size
        elif size > budget * (1 - ROOM_SHARE):
            removed.append(segment)
            size -= segment.size
    return removed


# ---- the owner's


class AttemptLog:
    """Keeps the log of an attempt that runs here, on this disk, and brings it into the store."""

    def __init__(self, store: Store, lease: Lease, folder: OwnFolder, budget: int) -> None:
        self._store = store
        self._lease = lease
        self._folder = folder
        self._process_id = lease.record.process_id
        self._prefix = logs_prefix(self._process_id, lease.record.attempt)
        # `tail.txt`, and the open end which is yet to be sealed, take their part of it.
        self._budget = budget - 2 * max(SEGMENT_BYTES, TAIL_BYTES)
        self._printed = JobLog()
        #: Taken from `_printed` and not settled yet; readers see them here meanwhile.
        self._settling: list[Block] = []
        #: Settled, and in no segment yet.
        self._end = Lines(1, [])
        #: What `tail.txt` is to show: at least `_end`.
        self._shown = Lines(1, [])
        self._segments: list[Segment] = []
        #: By the names of segments on the disk, where the job can rewrite them.
        self._digests: dict[str, bytes] = {}
        self._unsent: list[Segment] = []
        self._unremoved: list[Segment] = []
        self._sent_tail = encoded_tail(Tail(self._shown, None))
        self._sending = asyncio.Lock()

    def follow(self, printed: JobLog) -> None:
        """Keep the lines of `printed` from now on."""
        self._printed = printed

    async def keep(self) -> None:
        """Bring into the store what is new, as often as it is due, until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self._send()
            except StorageFailure as error:
                log.warning("process %s: its log was not stored: %s", self._process_id, error)
            except Exception:  # a fault of ours; what a job prints is not worth the job
                log.exception("process %s: its log was not stored", self._process_id)
            await asyncio.sleep(LOG_SECONDS - min(time.monotonic() - began, LOG_SECONDS / 2))

    async def finish(self, seconds: float, *, patiently: bool) -> None:
        """Store the end of it within `seconds`; `patiently`: also by a store that is away first."""
        sent = until_answered(self._send, StorageFailure) if patiently else self._send()
        try:
            await asyncio.wait_for(sent, seconds)
        except (TimeoutError, StorageFailure) as error:
            log.warning(
                "process %s: the end of its log was not stored: %r", self._process_id, error
            )
        except Exception:
            log.exception("process %s: the end of its log was not stored", self._process_id)

    async def seen(self) -> LogSeen:
        """All of it, as of now. Nothing is asked of the store."""
        segments, shown, unfinished = [*self._segments], self._shown, self._printed.unfinished()
        blocks = [*self._settling, *self._printed.pending()]
        rows = await asyncio.to_thread(self._printed.told, blocks)
        return LogSeen(segments, [shown, *rows], unfinished, self._read)

    async def longer_than(self, count: int) -> None:
        """Return once there are more than `count` lines."""
        await self._printed.longer_than(count)

    async def _read(self, segment: Segment) -> Lines:
        try:
            data = await asyncio.to_thread(self._on_disk, segment)
        except OSError:  # the attempt has just ended and taken its folder along
            data = (await self._store.get(self._prefix + segment.name)).data
        return decoded(segment, data)

    # ---- keeping it

    async def _send(self) -> None:
        """Settle what is new, and make the store hold it: segments first, so that none is missed.

        One request for each new segment, one for the tail if it changed, and now and then one to
        remove what is too much.
        """
        async with self._sending:
            await self._settle()
            if self._lease.lost.is_set():
                return
            for segment in [*self._unsent]:
                await self._send_segment(segment)
            tail = encoded_tail(Tail(self._shown, self._printed.unfinished()))
            if tail != self._sent_tail:
                key = self._prefix + TAIL_NAME
                await self._store.put(key, tail, content_type=TEXT)
                self._sent_tail = tail
            if self._unremoved:
                await self._store.delete([self._prefix + each.name for each in self._unremoved])
                self._unremoved.clear()

    async def _send_segment(self, segment: Segment) -> None:
        try:
            data = await asyncio.to_thread(self._on_disk, segment)
        except OSError as error:
            self._tell_lost(error)
        else:
            await self._store.put(self._prefix + segment.name, data, content_type=TEXT)
        self._unsent.remove(segment)

    async def _settle(self) -> None:
        """Turn what was printed since the last time into lines that are kept."""
        self._settling += self._printed.settle()
        if not self._settling:
            return
        rows = await asyncio.to_thread(self._printed.told, self._settling)
        sealed, end = seal(self._end, rows)
        written = await asyncio.to_thread(self._write, sealed)
        newest = joined([self._shown, *rows])[-1]
        self._settling, self._end = [], end
        self._shown = shown_end(newest, at_least=len(end.texts))
        self._segments += written
        self._unsent += written
        await self._remove(too_many(self._segments, self._budget))

    def _write(self, sealed: Sequence[Lines]) -> list[Segment]:
        """Write each to the disk; one that the disk refuses costs its own lines, never the job."""
        written = []
        for lines in sealed:
            data = encoded(lines)
            segment = Segment(lines.first, lines.last, len(data))
            try:
                self._folder.write(FOLDER, segment.name, data)
            except OSError as error:
                self._tell_lost(error)
            else:
                self._digests[segment.name] = sha256(data).digest()
                written.append(segment)
        return written

    def _tell_lost(self, error: OSError) -> None:
        log.warning("process %s: a part of its log is lost: %s", self._process_id, error)

    async def _remove(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            self._segments.remove(segment)
            if segment in self._unsent:
                self._unsent.remove(segment)
            else:
                self._unremoved.append(segment)
        await asyncio.to_thread(self._unlink, segments)

    def _unlink(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            self._folder.remove(f"{FOLDER}/{segment.name}")
            self._digests.pop(segment.name, None)

    def _on_disk(self, segment: Segment) -> bytes:
        """Raises OSError, also if the job has changed the file."""
        data = self._folder.read(f"{FOLDER}/{segment.name}", segment.size)
        if sha256(data).digest() != self._digests.get(segment.name):
            raise OSError(errno.EIO, "it was changed")
        return data
