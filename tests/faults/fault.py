"""What a fault is, and the catalogue from which a driver takes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Protocol, TypeVar


class World(Protocol):
    """What faults happen to: real processes, what should run there, and what is wrong about it at a moment."""

    async def start(self) -> None:
        """Bring everything up."""
        ...

    async def close(self) -> None:
        """Take everything away, whatever happened."""
        ...

    def remember(self) -> None:
        """All is fresh and well: nothing may hold much more than now."""
        ...

    async def wrong(self) -> list[str]:
        """Everything that is not as it should be now."""
        ...

    async def lives(self) -> dict[str, int]:
        """The process of each worker that should run."""
        ...

    def logs(self) -> str:
        """The ends of the logs that may say what went wrong."""
        ...


W = TypeVar("W", bound=World)
Happens = Callable[[W, Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault(Generic[W]):
    """What happens, and within how many seconds all is promised to be well again; whether workers live through it."""

    name: str
    promise_s: float
    keeps_workers: bool
    happens: Happens[W]


@dataclass
class Catalogue(Generic[W]):
    """All faults of one kind of world."""

    faults: list[Fault[W]] = field(default_factory=list)

    def fault(self, promise_s: float, *, keeps_workers: bool = False) -> Callable[[Happens[W]], Happens[W]]:
        """Register a fault by its function's name."""

        def register(happens: Happens[W]) -> Happens[W]:
            # A function's type has no name for the checker: it may be any callable.
            name = getattr(happens, "__name__", repr(happens))
            self.faults.append(Fault(name, promise_s, keeps_workers, happens))
            return happens

        return register
