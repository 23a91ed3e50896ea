"""Fetches the checkpoint that an attempt resumes from."""

from __future__ import annotations

import logging
from pathlib import Path

from attempts.uploads import checkpoint_key
from records.lease import until_answered
from records.record import Checkpoint, StoredFile
from storage import ChecksumMismatch, FileFacts, ObjectNotFound, StorageFailure, Store

log = logging.getLogger(__name__)


async def restore(
    store: Store, process_id: str, checkpoints: tuple[Checkpoint, ...], folder: Path
) -> tuple[Path | None, Checkpoint | None]:
    """Fetch the newest checkpoint that is whole.

    Returns what the job had handed over (a file or a folder) and the checkpoint it came from;
    both None if there is none. Waits for a store that is away or refuses: a late resume costs less
    than a restart.
    """
    for checkpoint in reversed(checkpoints):
        target = folder / f"resume-{checkpoint.attempt}-{checkpoint.seq}"
        try:
            for file in checkpoint.files:
                await _fetch(store, checkpoint_key(process_id, checkpoint, file.path), file, target)
        except (ObjectNotFound, ChecksumMismatch) as error:
            log.warning(
                "checkpoint %d is not whole, trying the one before: %s", checkpoint.seq, error
            )
            continue
        return next(iter(sorted(target.iterdir()))), checkpoint
    return None, None


async def _fetch(store: Store, key: str, file: StoredFile, target: Path) -> None:
    path = target / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = FileFacts(file.size, file.sha256)
    await until_answered(lambda: store.download(key, path, expected=expected), StorageFailure)
