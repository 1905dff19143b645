"""Work on files, off the event loop: what concerns the same thing in the order in which it was asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

log = logging.getLogger(__name__)
# Of their own: where the disk with the models hangs, it takes the loop's common threads, and records go on.
THREADS = 4
# A disk that takes longer hangs.
SETTLED_S = 20.0

T = TypeVar("T")


class OrderedWrites:
    """Runs work in threads. Two pieces with the same key never run at the same time, nor in another order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="files")
        self._last: dict[str, asyncio.Task[Any]] = {}

    def begin(self, key: str, work: Callable[[], T]) -> asyncio.Task[T]:
        """Have it run. The task is not to be cancelled: who awaits it shields it, as `run` does."""
        task = asyncio.get_running_loop().create_task(self._after(self._last.get(key), work))
        self._last[key] = task
        task.add_done_callback(lambda _: self._forget(key, task))
        return task

    def begin_or_tell(self, key: str, work: Callable[[], object], what: str) -> None:
        """Have it run, and `what` logged where the disk refuses: for what nobody waits for."""
        self.begin(key, lambda: _or_tell(work, what))

    async def run(self, key: str, work: Callable[[], T]) -> T:
        """Have it run and wait for its end; where the caller is cancelled meanwhile, it still runs to its end."""
        return await asyncio.shield(self.begin(key, work))

    async def settled(self, key: str | None = None, *, within_s: float = SETTLED_S) -> None:
        """Wait for the end of all that was asked for before, for that key or for all; no longer than that."""
        tasks = {task for name, task in self._last.items() if key in {None, name}}
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)

    async def _after(self, before: asyncio.Task[Any] | None, work: Callable[[], T]) -> T:
        if before is not None:
            await asyncio.wait({before})
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _forget(self, key: str, task: asyncio.Task[Any]) -> None:
        if self._last.get(key) is task:
            del self._last[key]


def _or_tell(work: Callable[[], object], what: str) -> None:
    try:
        work()
    except OSError as error:
        log.error("%s: %s", what, error)  # noqa: TRY400
