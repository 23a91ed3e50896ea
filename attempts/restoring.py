"""Fetches the checkpoint that an attempt resumes from."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from attempts.own_files import OwnFolder
from attempts.uploads import checkpoint_key
from child.names import on_disk
from inputs.files import to_the_end
from records.lease import until_answered
from records.record import Checkpoint, CheckpointFile
from storage import ChecksumMismatch, FileFacts, ObjectNotFound, StorageFailure, Store
from utils import CLOCK_TICK_SECONDS

log = logging.getLogger(__name__)


async def restore(
    store: Store, process_id: str, checkpoints: tuple[Checkpoint, ...], own: OwnFolder
) -> tuple[Path | None, Checkpoint | None]:
    """Fetch the newest checkpoint that is whole.

    Returns what the job had handed over (a file or a folder) and the checkpoint it came from;
    both None if there is none. Files come back oldest first with their times of modification, and
    the newest alone in its tick of the clock: a program may choose by either time. Waits for a
    store that is away or refuses: a late resume costs less than a restart.
    """
    for checkpoint in reversed(checkpoints):
        folder = f"resume-{checkpoint.attempt}-{checkpoint.seq}"
        try:
            files = sorted(checkpoint.files, key=lambda file: (file.modified_ns, file.path))
            for file in files:
                if file is files[-1]:
                    await asyncio.sleep(CLOCK_TICK_SECONDS)
                key = checkpoint_key(process_id, checkpoint, file.path)
                await _fetch(store, key, file, own, f"{folder}/{on_disk(file.path)}")
        except (ObjectNotFound, ChecksumMismatch) as error:
            log.warning(
                "checkpoint %d is not whole, trying the one before: %s", checkpoint.seq, error
            )
            continue
        handed_over = min(file.path.partition("/")[0] for file in checkpoint.files)
        return own.path / folder / on_disk(handed_over), checkpoint
    return None, None


async def _fetch(store: Store, key: str, file: CheckpointFile, own: OwnFolder, path: str) -> None:
    expected = FileFacts(file.size, file.sha256)
    with ExitStack() as held:
        target = await to_the_end(partial(held.enter_context, own.target(path)))
        await until_answered(lambda: store.download(key, target, expected=expected), StorageFailure)
        times = (file.modified_ns, file.modified_ns)
        await to_the_end(partial(os.utime, target, ns=times, follow_symlinks=False))
