"""State changes that a request begins belong to the application, so that a client that leaves stops none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from llama_orch.contract.errors import NotReady

T = TypeVar("T")
_ASK_AGAIN = "when it answers again, see how things stand and ask again; what was taken on is carried on"


class OwnedTasks:
    """Tasks that outlive the request that began them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` in the background; whoever stops the application awaits or cancels it.

        Raises NotReady where the application is being stopped: nothing new begins then.
        """
        if self._stopping:
            work.close()
            raise NotReady(f"the service is being stopped: {_ASK_AGAIN}", code="stopping")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Await `work`; where the caller is cancelled meanwhile, `work` still runs to its end. Raises as `outcome`."""
        return await self.outcome(self.start(work, name))

    async def outcome(self, task: asyncio.Task[T]) -> T:
        """Await one of these tasks, as any number may. Raises NotReady where the application's stop cut it off."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise NotReady(
                f"the service was stopped while this was being done: {_ASK_AGAIN}", code="stopping"
            ) from None

    async def cancel_all(self, timeout: float) -> None:
        """Cancel what still runs, wait up to `timeout` seconds for it to end, and let nothing begin any more."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
