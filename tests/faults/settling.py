"""Waits until nothing is wrong, and stays so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# A consequence may come a moment late: one look at which nothing is wrong is not enough.
STAYS_S = 1.0
LOOK_MOST_S = 60.0
_BETWEEN_S = 0.15


async def settled(wrong: Callable[[], Awaitable[list[str]]], within_s: float) -> tuple[float, list[str]]:
    """Look until nothing is wrong: the seconds that took, and what is still wrong after `within_s`."""
    began = time.monotonic()
    well_since: float | None = None
    while True:
        looked = time.monotonic()
        found = await _look(wrong)
        if found:
            well_since = None
            if time.monotonic() - began > within_s:
                return time.monotonic() - began, found
        else:
            well_since = looked if well_since is None else well_since
            if looked - well_since >= STAYS_S:
                return well_since - began, []
        await asyncio.sleep(_BETWEEN_S)


async def _look(wrong: Callable[[], Awaitable[list[str]]]) -> list[str]:
    try:
        async with asyncio.timeout(LOOK_MOST_S):
            return await wrong()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"[:300]]
