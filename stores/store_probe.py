"""Finds out what a bucket really does, since documentation and status codes both lie.

Some stores refuse conditional writes, some ignore them, some check them and then write in two
steps. So many writers go for one key at once, and are counted.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from threading import Barrier
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import httpx

from storage import Capabilities, ObjectNotFound, StorageMisconfigured, StorageUnavailable
from stores.s3_calls import backoff
from stores.s3_errors import PreconditionRefused
from stores.s3_files import Body, Stop
from utils import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stores.s3_requests import S3Requests

T = TypeVar("T")

#: Of each kind. A store that is not atomic passes for atomic only if it gets all of them right.
ROUNDS = 4
WRITERS = 8
#: Seconds that writers wait for each other before they start, and that clearing up may take.
TOGETHER = 8.0
CLEARING = 1.0

NO_CONDITIONS = (
    "conditional writes are not atomic here: single-writer mode, each write reads first, so that "
    "two workers at one process can overwrite each other; use a store with If-Match, or one worker"
)
NO_LINKS = (
    "links cannot be fetched here: `download` refuses; fetch results with the store's own keys"
)
NO_MULTI_DELETE = "objects are deleted one by one, because this store has no DeleteObjects"


def probe(requests: S3Requests, folder: str, patience: float) -> Capabilities:
    """What the bucket can do, found out by writing under `folder`. Blocking; 1 s or so.

    A step that the store fails at is tried again for `patience` seconds.

    Raises:
        StorageUnavailable: the store failed on the way; nothing is known.
        StorageMisconfigured: it does not take the plainest write.
    """
    # One pool for all races: while a pool starts a thread, whoever hands another one work waits.
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="s3-probe") as writers:
        bench = _Bench(requests, folder, patience, writers)
        try:
            bench.write("plain")
            conditional = bench.try_conditional_writes()
            presign = bench.try_links()
            multi_delete = bench.try_multi_delete()
            bench.write("plain")  # what was refused above was not refused because all is refused
        finally:
            bench.clear()
    lacks = [(conditional, NO_CONDITIONS), (presign, NO_LINKS), (multi_delete, NO_MULTI_DELETE)]
    return Capabilities(
        conditional, presign, multi_delete, tuple(text for can, text in lacks if not can)
    )


class _Race(NamedTuple):
    """What came of many writers at one key."""

    #: Those that were told they had written.
    winners: list[bytes]
    found: bytes | None
    #: Somebody who came when all was over was let in.
    late: bool

    @property
    def foul(self) -> bool:
        """Proof that the store is not atomic. The lack of it is not proof that it is."""
        lost = bool(self.winners) and self.found != self.winners[0]
        return len(self.winners) > 1 or lost or self.late


class _Bench:
    def __init__(
        self, requests: S3Requests, folder: str, patience: float, writers: Executor
    ) -> None:
        self._requests = requests
        self._patience = patience
        self._writers = writers
        self._folder = folder
        self._keys: set[str] = set()

    def write(self, name: str, data: bytes = b"probe") -> str:
        """Returns the version."""
        return _patiently(partial(self._requests.put, self._key(name), data), self._patience)

    # ---- conditional writes

    def try_conditional_writes(self) -> bool:
        """Whether of many writers exactly one gets in, each time."""
        try:
            races = [self._race(f"create-{number}", None) for number in range(ROUNDS)]
            for number in range(ROUNDS):
                name = f"replace-{number}"
                races.append(self._race(name, self.write(name)))
        except StorageMisconfigured:
            return False  # a plain write was taken: it is the condition that is refused
        if any(race.foul for race in races):
            return False
        if sum(len(race.winners) == 1 for race in races) < ROUNDS:
            raise StorageUnavailable("the store is too unsteady to find out what it can do")
        return True

    def _race(self, name: str, version: str | None) -> _Race:
        key, start = self._key(name), Barrier(WRITERS)

        def write(number: int) -> bytes | None:
            data = b"%d" % number
            start.wait(timeout=TOGETHER)
            with suppress(PreconditionRefused, ObjectNotFound, StorageUnavailable):
                self._requests.put_if(key, data, version)
                return data
            return None

        racing = [self._writers.submit(write, number) for number in range(WRITERS)]
        wait(racing)  # all of them, however one has fared: what comes next is not to meet them
        winners = [data for data in (each.result() for each in racing) if data]
        found = (
            _patiently(partial(self._requests.get, key), self._patience).data if winners else None
        )
        return _Race(winners, found, self._is_let_in(key, version))

    def _is_let_in(self, key: str, version: str | None) -> bool:
        try:
            _patiently(partial(self._requests.put_if, key, b"late", version), self._patience)
        except (PreconditionRefused, ObjectNotFound):
            return False
        return True

    # ---- links

    def try_links(self) -> bool:
        """Whether a link made here can be fetched by somebody without keys."""
        self._write_file("link", b"linked")
        try:
            url = self._requests.link(self._key("link"), 60, {})
            return _patiently(partial(self._fetch, url), self._patience) == b"linked"
        except StorageMisconfigured:
            return False

    def _write_file(self, name: str, data: bytes) -> None:
        """As files are. boto3 follows a bucket into another region, where links do not lead, and
        files do not go; that is to be known at the start, not when the first result is there."""
        key, sha256 = self._key(name), hashlib.sha256(data).hexdigest()

        def put() -> None:
            self._requests.put_file(key, Body(memoryview(data), Stop()), None, sha256)

        _patiently(put, self._patience)

    def _fetch(self, url: str) -> bytes | None:
        """None: the store does not honour it."""
        config = self._requests.config
        try:
            answer = httpx.get(
                url,
                timeout=httpx.Timeout(config.read_timeout, connect=config.connect_timeout),
                verify=_trust(config.tls_bundle or os.environ.get("AWS_CA_BUNDLE")),
                follow_redirects=True,
            )
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return None
            # 'from None': what httpx says holds the link
            raise StorageUnavailable("the store broke off while a link was fetched") from None
        if answer.status_code == 429 or (answer.status_code >= 500 and answer.status_code != 501):
            raise StorageUnavailable(f"the store answered {answer.status_code} to a link")
        return answer.content if answer.is_success else None

    # ---- removing

    def try_multi_delete(self) -> bool:
        """Whether DeleteObjects removes what it says it does."""
        names = ["many-0", "many-1"]
        for name in names:
            self.write(name)
        keys = [self._key(name) for name in names]
        try:
            _patiently(partial(self._requests.delete_many, keys), self._patience)
        except StorageMisconfigured:
            return False
        return not any(map(self._is_there, keys))

    def _is_there(self, key: str) -> bool:
        try:
            _patiently(partial(self._requests.get, key), self._patience)
        except ObjectNotFound:
            return False
        return True

    def clear(self) -> None:
        """Best effort: what stays is a few bytes under `locks/`, and the probe has its answer."""
        with suppress(WorkerError):
            for key in self._keys:
                _patiently(partial(self._requests.delete, key), CLEARING)

    def _key(self, name: str) -> str:
        key = f"{self._folder}/{name}"
        self._keys.add(key)
        return key


def _trust(bundle: str | None) -> ssl.SSLContext | bool:
    """The certificates that boto3 trusts; True: the usual ones."""
    return ssl.create_default_context(cafile=bundle) if bundle else True


def _patiently(call: Callable[[], T], seconds: float) -> T:
    """As `s3_calls.retrying`, in a thread of one's own."""
    delays = backoff(seconds)
    while True:
        try:
            return call()
        except StorageUnavailable:
            delay = next(delays, None)
            if delay is None:
                raise
            time.sleep(delay)
