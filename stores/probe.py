"""Finds out what a bucket really does, since documentation and status codes both lie.

Some stores refuse conditional writes, some ignore them, some check them and then write in two
steps. So many writers go for one key at once, and are counted.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from threading import Barrier
from typing import TYPE_CHECKING, NamedTuple

from storage import Capabilities, ObjectNotFound, StorageMisconfigured, StorageUnavailable
from stores.link_probe import LinkProbe, WriteLinks
from stores.s3.errors import PreconditionRefused
from stores.s3.stopping import Stop
from stores.s3.threads import patiently
from utils import WorkerError

if TYPE_CHECKING:
    from stores.s3.bucket import Bucket

#: Of each kind. A store that is not atomic passes for atomic only if it gets all of them right.
ROUNDS = 4
WRITERS = 8
#: Seconds that writers wait for each other before they start, and that clearing up may take.
TOGETHER = 8.0
CLEARING = 1.0

NO_CONDITIONS = (
    "conditional writes are refused or not atomic here: single-writer mode, each write reads "
    "first, so that two workers at one process can overwrite each other; use a store with "
    "If-Match, or one worker"
)
NO_LINKS = (
    "links cannot be fetched here: `download` refuses; fetch results with the store's own keys"
)
_INSTEAD = "`upload` takes chunks, and `cancel` is an action only"
NO_LINKS_TO_WRITE = (
    "there are no links to write to, because this store heeds headers or a size that a link does "
    f"not sign: a link to upload could copy any object; {_INSTEAD}"
)
LINKS_TO_WRITE_REFUSED = (
    "there are no links to write to, because this store refuses a write by a link; " + _INSTEAD
)
LINKS_TO_WRITE_UNPROVEN = (
    "there are no links to write to, because this store fails when a link is used for more than it "
    f"signs, so that it is not known what the link writes; {_INSTEAD}"
)
_LACKS = {
    WriteLinks.UNSAFE: NO_LINKS_TO_WRITE,
    WriteLinks.REFUSED: LINKS_TO_WRITE_REFUSED,
    WriteLinks.UNPROVEN: LINKS_TO_WRITE_UNPROVEN,
}
NO_MULTI_DELETE = "objects are deleted one by one, because this store has no DeleteObjects"


def probe(bucket: Bucket, folder: str, patience: float) -> Capabilities:
    """What the bucket can do, found out by writing under `folder`. Blocking; 1 s or so.

    A step that the store fails at is tried again for `patience` seconds.

    Raises:
        StorageUnavailable: the store failed on the way; nothing is known.
        StorageMisconfigured: it does not take the plainest write.
    """
    # One pool for all races: while a pool starts a thread, whoever hands another one work waits.
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="s3-probe") as writers:
        bench = _Bench(bucket, folder, patience, writers)
        try:
            bench.write("plain")
            conditional = bench.try_conditional_writes()
            presign = bench.try_links()
            writing = bench.try_links_to_write(create_only=conditional) if presign else None
            multi_delete = bench.try_multi_delete()
            bench.write("plain")  # what was refused above was not refused because all is refused
        finally:
            bench.clear()
    lacks = [
        (conditional, NO_CONDITIONS),
        (presign, NO_LINKS),
        *((False, sentence) for lack, sentence in _LACKS.items() if lack is writing),
        (multi_delete, NO_MULTI_DELETE),
    ]
    degraded = tuple(text for can, text in lacks if not can)
    return Capabilities(conditional, presign, multi_delete, writing is WriteLinks.SAFE, degraded)


class _Race(NamedTuple):
    """What came of many writers at one key."""

    #: Those that were told they had written.
    winners: list[bytes]
    found: bytes | None
    #: A conditional write after the race was accepted.
    late: bool

    @property
    def foul(self) -> bool:
        """Proof that the store is not atomic. The lack of it is not proof that it is."""
        lost = bool(self.winners) and self.found != self.winners[0]
        return len(self.winners) > 1 or lost or self.late


class _Bench:
    def __init__(self, bucket: Bucket, folder: str, patience: float, writers: Executor) -> None:
        self._bucket = bucket
        self._patience = patience
        self._writers = writers
        self._folder = folder
        self._keys: set[str] = set()
        self._links = LinkProbe(bucket, patience, writers, self._key)

    def write(self, name: str, data: bytes = b"probe") -> str:
        """Returns the version."""
        return patiently(partial(self._bucket.put, self._key(name), data), self._patience)

    # ---- conditional writes

    def try_conditional_writes(self) -> bool:
        """Whether of many writers exactly one gets in, each time."""
        try:
            creates = [self._race(f"create-{number}", None) for number in range(ROUNDS)]
            names = [f"replace-{number}" for number in range(ROUNDS)]
            replaces = [self._race(name, self.write(name)) for name in names]
            if any(race.foul for race in (*creates, *replaces)):
                return False
            won = [sum(len(race.winners) == 1 for race in races) for races in (creates, replaces)]
            if all(won) and sum(won) >= ROUNDS:
                return True
            if not self._takes_one_writer():
                return False
        except StorageMisconfigured:
            return False  # a plain write was taken: it is the condition that is refused
        raise StorageUnavailable("the store is too unsteady to find out what it can do")

    def _takes_one_writer(self) -> bool:
        """Whether a create and a replace without rivals get in; a store may refuse either always.

        The replace is conditional on the version that a read tells, as a takeover's is.
        """
        self.write("replace-alone")
        replaced, created = self._key("replace-alone"), self._key("create-alone")
        version = patiently(partial(self._bucket.get, replaced), self._patience).version
        return self._is_let_in(replaced, version) and self._is_let_in(created, None)

    def _race(self, name: str, version: str | None) -> _Race:
        key, start = self._key(name), Barrier(WRITERS)

        def write(number: int) -> bytes | None:
            data = b"%d" % number
            start.wait(timeout=TOGETHER)
            with suppress(PreconditionRefused, ObjectNotFound, StorageUnavailable):
                self._bucket.put_if(key, data, version)
                return data
            return None

        racing = [self._writers.submit(write, number) for number in range(WRITERS)]
        wait(racing)  # all of them, however one has fared: what comes next is not to meet them
        winners = [data for data in (each.result() for each in racing) if data]
        found = patiently(partial(self._bucket.get, key), self._patience).data if winners else None
        return _Race(winners, found, self._is_let_in(key, version))

    def _is_let_in(self, key: str, version: str | None) -> bool:
        try:
            patiently(partial(self._bucket.put_if, key, b"late", version), self._patience)
        except (PreconditionRefused, ObjectNotFound):
            return False
        return True

    # ---- links

    def try_links(self) -> bool:
        """Whether a link made here can be fetched by a client without keys."""
        self._write_file("link", b"linked")
        try:
            return self._links.can_be_read(self._key("link"), b"linked")
        except StorageMisconfigured:
            return False

    def try_links_to_write(self, *, create_only: bool) -> WriteLinks:
        """Whether a link to write writes what was signed, and nothing else."""
        try:
            return self._links.try_writing(create_only=create_only)
        except StorageMisconfigured:
            return WriteLinks.REFUSED

    def _write_file(self, name: str, data: bytes) -> None:
        """As files are. boto3 follows a bucket into another region, where links do not lead, and
        files do not go; that is to be known at the start, not when the first result is there."""
        key, sha256 = self._key(name), hashlib.sha256(data).hexdigest()

        def put() -> None:
            self._bucket.put_file(key, data, None, sha256, Stop())

        patiently(put, self._patience)

    # ---- removing

    def try_multi_delete(self) -> bool:
        """Whether DeleteObjects removes what it says it does."""
        names = ["many-0", "many-1"]
        for name in names:
            self.write(name)
        keys = [self._key(name) for name in names]
        try:
            patiently(partial(self._bucket.delete_many, keys), self._patience)
        except StorageMisconfigured:
            return False
        return not any(map(self._is_there, keys))

    def _is_there(self, key: str) -> bool:
        try:
            patiently(partial(self._bucket.get, key), self._patience)
        except ObjectNotFound:
            return False
        return True

    def clear(self) -> None:
        """Best effort: what stays is a few bytes under `locks/`, and the probe has its answer."""
        self._links.close()
        wait([self._writers.submit(self._remove, key) for key in self._keys])

    def _remove(self, key: str) -> None:
        with suppress(WorkerError):
            patiently(partial(self._bucket.delete, key), CLEARING)

    def _key(self, name: str) -> str:
        key = f"{self._folder}/{name}"
        self._keys.add(key)
        return key
