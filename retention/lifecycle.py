"""What a bucket may remove by itself. Pure."""

from __future__ import annotations

from pydantic import JsonValue

from worker.settings import Settings

#: Uploads in parts that nobody joined: links to parts work for 7 days at most.
ABANDONED_UPLOAD_DAYS = 7
#: A worker writes its figures every few minutes at most, and probes within seconds.
LEFTOVER_DAYS = 1
LEFTOVERS = {"probes": "locks/probe-", "checks": "locks/check-", "workers": "workers/"}


def lifecycle_rules(settings: Settings) -> dict[str, JsonValue]:
    """The lifecycle of the bucket that goes with `settings`, as `put-bucket-lifecycle` takes it.

    Only what is safe without looking at a record. Not processes, archives or inputs: a bucket sees
    when an object was written. It does not know that the process which made it still runs, nor that
    a folder is used every day; it would remove checkpoints of a long job and leave rows of
    processes that are gone.
    """
    prefix = f"{settings.prefix.strip('/')}/" if settings.prefix.strip("/") else ""
    rules: list[JsonValue] = [
        {
            "ID": "abandoned-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABANDONED_UPLOAD_DAYS},
        }
    ]
    rules += [
        {
            "ID": f"leftover-{name}",
            "Status": "Enabled",
            "Filter": {"Prefix": f"{prefix}{beginning}"},
            "Expiration": {"Days": LEFTOVER_DAYS},
        }
        for name, beginning in LEFTOVERS.items()
    ]
    return {"Rules": rules}
