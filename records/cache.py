"""This worker's own copies of records and its journal of unsent writes, in a folder that it holds.

Not the truth. A copy answers a lookup for good only when its process can never change again;
otherwise it answers only when the store cannot be asked, and says that it is stale. A write that
the store did not take yet is kept in the journal, so that it outlives the worker.

Workers of one machine may share a scratch disk. Each reads and writes its own folder alone, as
`Workplace` holds it. A worker that starts takes over what dead ones left: their copies, and then
their journals, which it holds until every write in them is sent or obsolete.

Jobs run as the same user and may write to that disk. So each own file begins with a MAC by a key in
RAM. A copy without it says only, when the store is away, how things stood; an end from a journal
counts if the record in the store bears it out.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from records.record import Record
from storage import Stored
from utils import new_nonce
from worker.beneath import opened, remove_tree
from worker.workplace import FOLDER_NAME, Workplace, held_if_abandoned

log = logging.getLogger(__name__)
T = TypeVar("T", bound=BaseModel)

#: Records kept in RAM; the rest is on disk. A record is a few KiB.
MAX_IN_MEMORY = 1000
#: How the names of copies and of unsent writes end, after the process id.
COPY, UNSENT = ".json", ".unsent"
#: A larger file is none that a worker wrote.
MAX_FILE_BYTES = 16 << 20
#: What either is called while it is written.
PARTIAL_NAME = re.compile(r"\..+\.(json|unsent)\.[0-9a-f]{16}")


class Copy(BaseModel, frozen=True):
    """A record as the store had it when this worker saw it."""

    record: Record
    #: The version in the store that `record` is.
    version: str
    #: Seconds since the epoch, by the store's clock; None: it was written from here, not read.
    modified: float | None = None
    #: Age by the store's clock when it was seen; None: the store did not tell.
    age_seconds: float | None
    #: When it was seen, by this machine's clock: only to tell how old a stale answer is.
    seen_at: float
    #: Whether this worker wrote it. Not stored.
    own: bool = Field(default=True, exclude=True)

    @property
    def final(self) -> bool:
        """Whether its process has ended for good: it can be deleted, and nothing else."""
        return self.own and self.record.terminal and not self.record.resumable

    def seen_within(self, seconds: float) -> bool:
        return 0 <= time.time() - self.seen_at <= seconds

    def age_now(self) -> float | None:
        """None: unknown, also because this machine's clock was set back."""
        since = time.time() - self.seen_at
        return None if self.age_seconds is None or since < 0 else self.age_seconds + since

    def as_stored(self) -> Stored | None:
        """What a conditional read compares with. Its bytes are never looked at.

        None: it has to be read whole. This worker did not write it; or when it was written is
        unknown, and a store that answers "unchanged" may not tell it either.
        """
        if self.modified is None or not self.own:
            return None
        return Stored(b"", self.version, self.modified, self.age_seconds)


class Unsent(BaseModel, frozen=True):
    """A write that the store did not take yet."""

    record: Record
    #: Of the writer's nonce, once the process has ended here; see `records.proof`.
    proof: str


class JournalEntry(NamedTuple):
    """An unsent write in the journal of a dead worker."""

    path: Path
    unsent: Unsent


class RecordCache:
    """Copies by process id: bounded in RAM, one small file each on disk; and the journal.

    A disk that is full or gone costs the copy, never the process: it is logged and life goes on.
    """

    def __init__(self, parent: Path) -> None:
        """`parent` is shared by the workers of this machine that use the same store."""
        self._parent = parent
        self._place = Workplace(parent)
        self._recent: OrderedDict[str, Copy] = OrderedDict()
        self._key = secrets.token_bytes(32)

    # ---- copies

    async def keep(self, copy: Copy) -> None:
        known = self._recent.get(copy.record.process_id)
        self._remember(copy)
        if known and known.version == copy.version:
            return  # a poll that found nothing new is no reason to write
        await asyncio.to_thread(self._write, copy.record.process_id, COPY, copy)

    async def find(self, process_id: str) -> Copy | None:
        if process_id in self._recent:
            self._recent.move_to_end(process_id)
            return self._recent[process_id]
        copy = await asyncio.to_thread(self._read_copy, self._path(process_id, COPY))
        if copy:
            self._remember(copy)
        return copy

    async def drop(self, process_id: str) -> None:
        self._recent.pop(process_id, None)
        await asyncio.to_thread(_unlink, self._path(process_id, COPY))

    # ---- the journal

    async def journal(self, unsent: Unsent) -> None:
        """Keep a write that the store did not take; the next one replaces it."""
        await asyncio.to_thread(self._write, unsent.record.process_id, UNSENT, unsent)

    async def sent(self, process_id: str) -> None:
        """Nothing about this process is unsent any more."""
        await asyncio.to_thread(_unlink, self._path(process_id, UNSENT))

    @asynccontextmanager
    async def left_behind(self) -> AsyncIterator[list[JournalEntry]]:
        """Adopt the copies of dead workers; what is in their journals, held while this lasts.

        A journal with entries that are not `settled` is left to the next worker.
        """
        with ExitStack() as held:
            folders = await asyncio.to_thread(self._adopt, held)
            yield await asyncio.to_thread(lambda: [e for f in folders for e in _entries(f)])
            for folder in folders:
                await asyncio.to_thread(_remove_unless_owing, folder)

    async def settled(self, entry: JournalEntry) -> None:
        """The store has it, or the process has moved on; a copy from before says less."""
        await asyncio.to_thread(_unlink, entry.path)
        await self.drop(entry.unsent.record.process_id)

    # ---- inside

    def _remember(self, copy: Copy) -> None:
        self._recent[copy.record.process_id] = copy
        self._recent.move_to_end(copy.record.process_id)
        while len(self._recent) > MAX_IN_MEMORY:
            self._recent.popitem(last=False)

    def _path(self, process_id: str, ending: str) -> Path:
        """Through the held folder, once there is one: a link in its place diverts nothing."""
        held = self._place.descriptor
        folder = self._place.folder if held < 0 else Path(f"/proc/self/fd/{held}")
        return folder / f"{process_id}{ending}"

    def _mac(self, text: bytes) -> bytes:
        return hmac.new(self._key, text, hashlib.sha256).hexdigest().encode() + b"\n"

    def _read_copy(self, path: Path) -> Copy | None:
        """A copy that says whether this worker wrote it."""
        head, _, text = (_read(path) or b"").partition(b"\n")
        copy = _parsed(text, Copy)
        own = hmac.compare_digest(head + b"\n", self._mac(text))
        return copy and copy.model_copy(update={"own": own})

    def _write(self, process_id: str, ending: str, value: BaseModel) -> None:
        text = value.model_dump_json().encode()
        try:
            self._place.claim()
            path = self._path(process_id, ending)
            partial = path.with_name(f".{path.name}.{new_nonce()}")
            with FileIO(partial, "x", opener=_no_links) as file:
                file.write(self._mac(text) + text)
            partial.replace(path)
        except OSError as error:
            log.warning("no local copy of %s: %s", process_id, error.strerror)

    def _adopt(self, held: ExitStack) -> list[Path]:
        """Take the copies of all dead workers. Returns those folders that `held` holds from now on:
        the ones with unsent writes. Others are removed at once, as one may belong to a worker
        that made it just now and waits for its lock."""
        owing = []
        for folder in self._others():
            with suppress(OSError), ExitStack() as hold:
                if not hold.enter_context(held_if_abandoned(folder)):
                    continue
                for path in folder.glob(f"*{COPY}"):
                    with suppress(OSError):  # a full disk costs the copy, and no unsent write
                        self._adopt_copy(path)
                if not _remove_unless_owing(folder):
                    owing.append(folder)
                    held.push(hold.pop_all())
        return owing

    def _others(self) -> Iterator[Path]:
        with suppress(OSError):
            for folder in sorted(self._parent.iterdir()):
                if FOLDER_NAME.fullmatch(folder.name) and folder != self._place.folder:
                    yield folder

    def _adopt_copy(self, path: Path) -> None:
        """Unless this worker has one that is as new."""
        process_id = path.name.removesuffix(COPY)
        copy, own = self._read_copy(path), self._read_copy(self._path(process_id, COPY))
        if copy and (own is None or own.record.revision < copy.record.revision):
            self._place.claim()
            path.replace(self._path(process_id, COPY))


def _parsed(text: bytes, kind: type[T]) -> T | None:
    with suppress(ValidationError):
        return kind.model_validate_json(text)
    return None


def _read(path: Path) -> bytes | None:
    """None: it is not there or not to be read. Other programs may write to a scratch disk."""
    try:
        with FileIO(path, opener=_no_links) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_FILE_BYTES else None


def _no_links(path: str, flags: int) -> int:
    """An `opener` that refuses a link and does not wait for a pipe's other end."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _unlink(path: Path) -> None:
    """Never raises: a copy that stays is only older, and an unsent write is refused when sent."""
    with suppress(OSError):
        path.unlink()


def _entries(folder: Path) -> list[JournalEntry]:
    """Those that can be read; others may be of a newer worker."""
    texts = {path: _read(path) or b"" for path in sorted(folder.glob(f"*{UNSENT}"))}
    found = [(path, _parsed(text.partition(b"\n")[2], Unsent)) for path, text in texts.items()]
    return [JournalEntry(path, unsent) for path, unsent in found if unsent]


def _remove_unless_owing(folder: Path) -> bool:
    """Remove the folder of a dead worker; False: it has unsent writes."""
    if any(folder.glob(f"*{UNSENT}")):
        return False
    with suppress(OSError), opened(folder.parent) as within:
        remove_tree(folder.name, within)
    return True
