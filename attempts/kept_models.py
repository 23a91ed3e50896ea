"""What kinds keep in memory between consecutive processes: at most one thing, not for long.

It is kept in host memory by a process of its own, from which attempts are forked (`jobs.template`):
so it holds no GPU, an attempt cannot spoil it for the next one, and a cancel ends an attempt and
nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import Final

from attempts.own_files import OwnFolder
from child.forks import LoaderRefused, Template
from jobs import JOBS
from records.delivery import Start
from worker.settings import Settings

log = logging.getLogger(__name__)

#: Loading for longer than this is not hurried by waiting: the attempt loads for itself.
LOAD_SECONDS: Final = 120.0
_CHUNK: Final = 1 << 20


class KeptModels:
    """Gives each attempt the template to fork from: the plain one, or one that has loaded."""

    def __init__(self, template: Template | None, settings: Settings) -> None:
        self.plain = template
        self._settings = settings
        self._kept: Template | None = None
        self._key = ""
        #: Kinds whose loaders do what nothing that is kept may do.
        self._refused: set[str] = set()
        self._users = 0
        self._idle: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()

    async def template_for(self, start: Start, own: OwnFolder) -> Template | None:
        """The template from which to fork an attempt of `start`; `own` is its folder."""
        keep = JOBS[start.kind].keep if start.kind not in self._refused else None
        if keep is None or self.plain is None or not self._settings.keep_seconds:
            self._drop_unless_used()  # another kind may need the memory
            return self.plain
        params = JOBS[start.kind].params.model_validate(start.params)
        path = keep.input(params)
        if any(each.unpack for each in start.inputs.values()):
            return self.plain  # what is there will only be unpacked by the attempt
        async with self._turn:
            inputs = (own.path / "inputs").resolve()
            try:
                content, size = await asyncio.to_thread(digest, own, f"inputs/{path}")
            except OSError:
                return self.plain  # the attempt says what is wrong with its input
            if size > self._settings.keep_bytes:
                return self.plain
            key = f"{start.kind} {path} {content}"
            if self._kept is None or self._key != key or not self._kept.ready.is_set():
                if self._users:
                    return self.plain  # kept for others, who still fork from it
                self.drop()
                self._kept, self._key = await self._loaded(self.plain, start, inputs), key
        return self._kept or self.plain

    async def _loaded(self, plain: Template, start: Start, inputs: Path) -> Template | None:
        try:
            return await plain.loaded(start.kind, start.params, inputs, seconds=LOAD_SECONDS)
        except LoaderRefused as error:
            log.warning("nothing is kept for the kind %s: %s", start.kind, error)
            self._refused.add(start.kind)
            return None

    def begin(self, template: Template | None) -> None:
        """An attempt is forked from `template`."""
        if template is not None and template is self._kept:
            self._users += 1
            self._stop_timer()

    async def end(self, template: Template | None, *, well: bool) -> None:
        """That attempt is over. One that did not end `well` may have had a broken thing in hand."""
        if template is None or template is not self._kept:
            return
        self._users -= 1
        takes = await asyncio.to_thread(_memory_of, self._kept.pid)
        if template is not self._kept:
            return  # it was dropped meanwhile
        if not well or takes > self._settings.keep_bytes:
            self.drop()
        elif not self._users:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._settings.keep_seconds, self.drop)

    def drop(self) -> None:
        """Keep nothing. Attempts that were forked go on."""
        self._stop_timer()
        if self._kept is not None:
            self._kept.close()
        self._kept, self._users = None, 0

    def _drop_unless_used(self) -> None:
        if not self._users:
            self.drop()

    def _stop_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


def digest(own: OwnFolder, path: str) -> tuple[str, int]:
    """Of a file, or of a folder's files with their names: sha256 (hex), and bytes. Blocking."""
    whole, size = hashlib.sha256(), 0
    for name in own.listing(path, sys.maxsize).files or [""]:
        with own.open(f"{path}/{name}".rstrip("/")) as file:
            length = os.fstat(file.fileno()).st_size
            whole.update(f"{name}\0{length}\0".encode())
            size += length
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
    return whole.hexdigest(), size


def _memory_of(pid: int | None) -> int:
    """Bytes that a process holds for itself alone; 0 where it cannot be told."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    private = [row.split() for row in rows if row.startswith("Private_")]
    return sum(int(row[1]) for row in private) << 10
