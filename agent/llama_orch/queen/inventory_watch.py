"""Watches the inventory's folder, so that an edit shows without anybody asking for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from watchfiles import Change, awatch

log = logging.getLogger(__name__)

# Where the kernel tells nothing (a network file system, no inotify left), the files are looked at this often.
LOOK_ANYWAY_S = 30


async def watch(folder: Path, changed: Callable[[], Awaitable[None]]) -> None:
    """Call `changed` after every change under `folder`, and every half minute; runs until cancelled.

    The folder is watched and not the files: editors replace a file, and a watch on it would end with it.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            async for _ in awatch(
                folder,
                watch_filter=_matters,
                debounce=200,
                step=50,
                rust_timeout=LOOK_ANYWAY_S * 1000,
                yield_on_timeout=True,
            ):
                await _guarded(changed)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        await asyncio.sleep(1)


def _matters(_change: Change, path: str) -> bool:
    return not Path(path).name.startswith(".")


async def _guarded(changed: Callable[[], Awaitable[None]]) -> None:
    try:
        await changed()
    except Exception:
        log.exception("the inventory changed, but this could not be worked on")
