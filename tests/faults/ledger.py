"""A client that starts and deletes workers while faults happen, and keeps a ledger of what it was told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from random import Random
from typing import Any

import aiohttp

Call = Callable[..., Awaitable[tuple[int, Any]]]
PATH = "/api/v1/workers"
NAMES = ("extra", "extra-2", "extra-3")


class Ledger:
    """What was acknowledged of each worker: that it is wanted, that it is gone, or nothing, where no answer came."""

    def __init__(self, call: Call, body: Callable[[str], dict[str, Any]]) -> None:
        self._call = call
        self._body = body
        self._acknowledged: dict[str, bool | None] = {}
        self._ids: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def asking(self, random: Random) -> AsyncIterator[None]:
        """Start and delete workers meanwhile; the last request is waited for."""
        enough = asyncio.Event()
        task = asyncio.create_task(self._ask_at_random(random, enough))
        try:
            yield
        finally:
            enough.set()
            await task

    def lost(self, there: Container[str]) -> list[str]:
        """What was acknowledged and is not so, compared with the names of the workers that are there."""
        said = {True: "started", False: "deleted"}
        return [
            f"worker {name} was acknowledged as {said[wanted]}, and that is lost"
            for name, wanted in self._acknowledged.items()
            if wanted is not None and (name in there) is not wanted
        ]

    async def spawn(self, name: str) -> None:
        """Ask for a worker."""
        status, answer = await self._ask(name, "POST", PATH, json=self._body(name))
        if status == 200:
            self._acknowledged[name] = True
            self._ids[name] = answer["id"]

    async def delete(self, name: str) -> None:
        """Ask for the end of one that was acknowledged."""
        status, _ = await self._ask(name, "DELETE", f"{PATH}/{self._ids[name]}")
        # An id that is not there may have been replaced by one of the same name that nobody could tell us of.
        if status == 200:
            self._acknowledged[name] = False
            del self._ids[name]

    async def _ask_at_random(self, random: Random, enough: asyncio.Event) -> None:
        while not enough.is_set():
            name = random.choice(NAMES)
            await (self.delete(name) if name in self._ids and random.random() < 0.5 else self.spawn(name))
            await asyncio.sleep(random.uniform(0, 0.7))

    async def _ask(self, name: str, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Status and answer; 0 where none came, and then the request may have been carried out or not."""
        before = self._acknowledged.get(name)
        self._acknowledged[name] = None
        try:
            status, answer = await self._call(method, path, **request)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0, None
        if method == "POST" and status >= 400:
            # Refused: all is as it was. A deletion may go on.
            self._acknowledged[name] = before
        return status, answer
