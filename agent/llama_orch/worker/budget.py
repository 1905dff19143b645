"""What the work for one request may take before it has a slot: steps that are counted, and computing time.

A schema of a few kilobytes can ask for more rules than there are atoms. So whoever goes through what a client sent
says so by `spend`, and is stopped where the request's budget is used up or its client has gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Steps are parts of schemas and grammars, or some dozens of characters each. A schema of 4000 parts takes a tenth.
STEPS = 1_000_000
# CPU time of the thread, so that a busy machine refuses nobody.
CPU_SECONDS = 2.0
_STEPS_BETWEEN_LOOKS = 256


class BudgetSpent(Exception):
    """The work takes more than one request may have."""


class Abandoned(BudgetSpent):
    """Nobody waits for the work any more."""

    def __init__(self) -> None:
        super().__init__("nobody waits for it any more")


class Budget:
    """One request's. `abandoned` may be set by any thread, the rest belongs to the one that does the work."""

    def __init__(self, *, steps: int = STEPS, cpu_seconds: float = CPU_SECONDS) -> None:
        self.abandoned = False
        self._steps = steps
        self._cpu_seconds = cpu_seconds
        self._left = steps
        self._next_look = steps - _STEPS_BETWEEN_LOOKS
        self._until = float("inf")

    def begun(self) -> Budget:
        """The same; its time counts from now on, in this thread."""
        self._until = time.thread_time() + self._cpu_seconds
        return self

    def spend(self, steps: int) -> None:
        """Count steps. Raises BudgetSpent, Abandoned."""
        self._left -= steps
        if self._left > self._next_look:
            return
        self._next_look = self._left - _STEPS_BETWEEN_LOOKS
        if self.abandoned:
            raise Abandoned
        if self._left < 0:
            raise BudgetSpent(f"takes more than {self._steps} steps of work")
        if time.thread_time() > self._until:
            raise BudgetSpent(f"takes more than {self._cpu_seconds:g} seconds of computing")


_current: ContextVar[Budget | None] = ContextVar("budget", default=None)


def spend(steps: int = 1) -> None:
    """Count steps of the work that this thread does for a request. Raises BudgetSpent, Abandoned."""
    budget = _current.get()
    if budget is not None:
        budget.spend(steps)


def look() -> None:
    """Look now whether the work may go on, before something that takes long by itself. Raises as `spend` does."""
    spend(_STEPS_BETWEEN_LOOKS)


@contextmanager
def limited(budget: Budget | None = None) -> Iterator[None]:
    """Let what is inside have this budget; by default the one that is there already, or else a new one."""
    if budget is None:
        budget = _current.get() or Budget().begun()
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)
