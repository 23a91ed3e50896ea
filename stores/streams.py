"""What comes in chunks from a caller, for both stores."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Whoever makes the chunks gets to know when nobody takes any more."""
    try:
        yield
    finally:
        aclose = getattr(chunks, "aclose", None)
        if aclose is not None:
            await aclose()


def check_size(came: int, announced: int) -> None:
    """Raises ValueError if more bytes came than were announced."""
    if came > announced:
        raise ValueError(f"more than the {announced} bytes announced came")
