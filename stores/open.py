"""Opening the store that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage import Store
    from worker.meter import Meter
    from worker.settings import Settings


def open_store(settings: Settings, meter: Meter) -> Store:
    """The store that the settings name: a bucket if one is set, else a folder.

    `meter` counts what it is asked.

    Makes no request. boto3 is imported only when there is a bucket: it takes 0.3 s.

    Raises:
        StorageMisconfigured: the settings contradict each other.
    """
    if settings.bucket is None:
        from stores.local.store import LocalStore

        return LocalStore(settings.local_store_root(), meter)
    from stores.s3.store import S3Store

    return S3Store.from_settings(settings, meter)
