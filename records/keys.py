"""The keys of the objects of a process."""

from __future__ import annotations


def record_key(process_id: str) -> str:
    return f"processes/{process_id}/record.json"


def cancel_key(process_id: str) -> str:
    return f"processes/{process_id}/cancel"


def attempt_prefix(process_id: str, attempt: int) -> str:
    return f"processes/{process_id}/attempts/{attempt}/"
