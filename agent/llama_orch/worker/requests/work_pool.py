"""Threads for what a request needs computed before it has a slot: its schema, its conversation, its tokens.

Whoever fills one of these pools fills it for itself alone: each scope (a client's address) waits in a line of its own,
the lines take turns, and one of several threads is always kept from those who hold the others.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from llama_orch.contract.errors import BadRequest, Busy

from .. import budget

# Of one scope. What is beyond it is sent away at once.
MOST_WAITING = 64
WAIT_SECONDS = 60.0
# With nothing done for so long and somebody waiting, the pool serves nobody.
STALLED_SECONDS = 10.0

T = TypeVar("T")


class WorkPool:
    """`threads` threads; each piece of work may take `cpu_seconds`. All methods belong to the event loop's thread."""

    def __init__(self, name: str, threads: int, *, cpu_seconds: float = budget.CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._running: Counter[str] = Counter()
        # In the order in which scopes take turns.
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._moved_at = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """How long somebody has waited while nothing was done; 0.0 while that is short."""
        seconds = time.monotonic() - self._moved_at if self._lines else 0.0
        return seconds if seconds > STALLED_SECONDS else 0.0

    async def run(self, scope: str, work: Callable[[], T]) -> T:
        """Run `work` in a thread, with a budget of its own, and return what it returns.

        Work whose client leaves is taken out of its line, or ended where it next spends of its budget. Raises Busy
        where too much of the scope waits already, or its turn does not come, BadRequest where the budget is spent.
        """
        await self._turn(scope)
        mine = budget.Budget(cpu_seconds=self._cpu_seconds)
        started: Future[T] | None = None
        try:
            started = self._executor.submit(contextvars.copy_context().run, _with_budget, mine, work)
            return await asyncio.wrap_future(started)
        except budget.BudgetSpent as error:
            raise BadRequest(f"to read the request {error}; send less at once", code="too_much_work") from None
        finally:
            mine.abandoned = True
            self._when_ended(scope, started)

    def close(self) -> None:
        """Start nothing any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, scope: str) -> None:
        if self._may_run(scope) and not self._lines:
            self._take(scope)
            return
        line = self._lines.setdefault(scope, deque())
        if len(line) >= MOST_WAITING:
            raise _busy()
        if len(self._lines) == 1 and not line:
            self._moved_at = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._next()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_back(scope)
            elif turn in self._lines.get(scope, ()):
                self._lines[scope].remove(turn)
                if not self._lines[scope]:
                    del self._lines[scope]
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def _may_run(self, scope: str) -> bool:
        busy = self._running.total()
        if busy >= self._threads:
            return False
        return self._threads == 1 or self._running[scope] < self._threads - 1

    def _take(self, scope: str) -> None:
        self._running[scope] += 1
        self._moved_at = time.monotonic()

    def _next(self) -> None:
        for scope in list(self._lines):
            while scope in self._lines and self._may_run(scope):
                line = self._lines.pop(scope)
                turn = line.popleft()
                # Behind the others now.
                if line:
                    self._lines[scope] = line
                if not turn.done():
                    self._take(scope)
                    turn.set_result(None)
                    break

    def _when_ended(self, scope: str, started: Future[Any] | None) -> None:
        """Pass the thread on when it is free, which after a client has left may be later."""
        if started is None or started.done():
            self._give_back(scope)
            return
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            # The loop may be gone, with the process.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._give_back, scope)

        started.add_done_callback(ended)

    def _give_back(self, scope: str) -> None:
        self._running[scope] -= 1
        if not self._running[scope]:
            del self._running[scope]
        self._moved_at = time.monotonic()
        self._next()


def _with_budget(mine: budget.Budget, work: Callable[[], T]) -> T:
    with budget.limited(mine.begun()):
        return work()


def _busy() -> Busy:
    return Busy(
        "requests of this client that were to be read wait already: try again in 2 s", headers={"Retry-After": "2"}
    )
