"""Admission: who may generate, who waits, who is sent away. First come, first served."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from llama_orch.contract.errors import Busy, NotReady

MAX_RETRY_AFTER_SECONDS = 60


class Slot:
    """The right to generate; given back exactly once, however often `release` is called."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._taken_at = time.monotonic()
        self._held = True

    def release(self) -> None:
        """Give the slot to whoever waits longest."""
        if self._held:
            self._held = False
            self._slots._give_back(time.monotonic() - self._taken_at)


class Slots:
    """`count` requests generate at a time; `queue_limit` more may wait.

    All methods belong to the event loop's thread.
    """

    def __init__(self, count: int, *, queue_limit: int) -> None:
        self.count = count
        self.queue_limit = queue_limit
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed: str | None = None
        self._mean_seconds = 1.0

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return self._running

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def require_room(self, wanted: int) -> None:
        """Raise Busy where not all of `wanted` requests could be admitted or wait now."""
        if self._running + len(self._waiting) + wanted > self.count + self.queue_limit:
            raise self._busy("all slots are taken and the queue is full")

    async def take(self, timeout: float) -> Slot:
        """Wait for the right to generate. Raises Busy where the queue is full or `timeout` seconds have passed,
        NotReady where the slots are closed.
        """
        if self._closed is not None:
            raise NotReady(self._closed)
        if self._running < self.count and not self._waiting:
            self._running += 1
            return Slot(self)
        self.require_room(1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            self._leave(turn)
            if isinstance(error, TimeoutError):
                raise self._busy(f"no slot became free within {timeout:.0f} seconds") from None
            raise
        return Slot(self)

    def close(self, reason: str) -> None:
        """Admit nobody any more and send away who waits; who generates may go on."""
        self._closed = reason
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(NotReady(reason))

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            # The turn came at the same moment as the cancellation: pass it on.
            self._next()

    def _give_back(self, seconds: float) -> None:
        self._mean_seconds += (seconds - self._mean_seconds) / 8
        self._next()

    def _next(self) -> None:
        self._running -= 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)
                return

    def _busy(self, reason: str) -> Busy:
        ahead = self._running + len(self._waiting)
        seconds = math.ceil(self._mean_seconds * ahead / self.count)
        seconds = max(1, min(MAX_RETRY_AFTER_SECONDS, seconds))
        return Busy(
            f"{reason}: try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
            slots=self.count,
            queued=self.queued,
            retry_after_seconds=seconds,
        )
