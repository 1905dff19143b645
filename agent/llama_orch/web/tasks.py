"""State changes that a request begins belong to the application, so that a client that leaves stops none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class OwnedTasks:
    """Tasks that outlive the request that began them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` in the background; whoever stops the application awaits or cancels it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Await `work`; where the caller is cancelled meanwhile, `work` still runs to its end."""
        return await asyncio.shield(self.start(work, name))

    async def cancel_all(self, timeout: float) -> None:
        """Cancel what still runs and wait up to `timeout` seconds for it to end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
