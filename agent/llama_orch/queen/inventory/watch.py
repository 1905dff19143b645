"""Watches the inventory's folder, so that an edit shows without anybody asking for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from watchfiles import Change, awatch

log = logging.getLogger(__name__)

# Where the kernel tells nothing, as of a network file system, the files are looked at this often.
LOOK_ANYWAY_S = 30
# And this often where it has no watch left to give.
POLL_S = 2


async def watch(folder: Path, changed: Callable[[], Awaitable[None]]) -> None:
    """Call `changed` after every change under `folder`, and every half minute; runs until cancelled.

    The folder is watched and not the files: editors replace a file, and a watch on it would end with it. Where all
    watches are taken by others, the files are compared every two seconds instead.
    """
    polling = False
    while True:
        try:
            async for _ in awatch(
                folder,
                watch_filter=_matters,
                debounce=200,
                step=50,
                rust_timeout=LOOK_ANYWAY_S * 1000,
                yield_on_timeout=True,
                force_polling=polling,
                poll_delay_ms=POLL_S * 1000,
            ):
                await _guarded(changed)
        except FileNotFoundError:
            pass
        # The one is raised where no watch is left, the other where no instance is.
        except (OSError, RuntimeError) as error:
            if not polling:
                log.warning(
                    "the kernel watches no file of %s (%s): its files are compared every %d s instead. Raise sysctl "
                    "fs.inotify.max_user_watches and max_user_instances, and start the queen again",
                    folder,
                    error,
                    POLL_S,
                )
            polling = True
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        await asyncio.sleep(1)


def _matters(_change: Change, path: str) -> bool:
    return not Path(path).name.startswith(".")


async def _guarded(changed: Callable[[], Awaitable[None]]) -> None:
    try:
        await changed()
    except Exception:
        log.exception("the inventory changed, but this could not be worked on")
