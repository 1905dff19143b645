"""The answer to GET /metrics: always read anew, but however many ask, one at a time and with pauses between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, generate_latest

from llama_orch.contract.errors import NotReady

# A rendering holds up everything else, so it takes at most a fifth of the time.
_PAUSE_PER_RENDERING = 4.0
_LONGEST_PAUSE_SECONDS = 2.0
_REFRESH_SECONDS = 20.0


class Scrape:
    """Renders a registry. Whoever asks while it rests or waits shares the next rendering."""

    def __init__(self, registry: CollectorRegistry, refresh: Callable[[], Awaitable[None]] | None) -> None:
        self._registry = registry
        self._refresh = refresh
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None
        self._not_before = 0.0

    async def text(self) -> bytes:
        """What the registry holds, read after this call. Raises NotReady where it cannot be read in time."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._render())
        return await asyncio.shield(self._next)

    async def _render(self) -> bytes:
        async with self._one_at_a_time:
            await asyncio.sleep(self._not_before - time.monotonic())
            # What is read from here on may be too old for those who come now.
            self._next = None
            began = time.thread_time()
            if self._refresh is not None:
                try:
                    async with asyncio.timeout(_REFRESH_SECONDS):
                        await self._refresh()
                except TimeoutError:
                    raise NotReady(f"what is measured could not be read within {_REFRESH_SECONDS:.0f} s") from None
            text = generate_latest(self._registry)
            pause = (time.thread_time() - began) * _PAUSE_PER_RENDERING
            self._not_before = time.monotonic() + min(pause, _LONGEST_PAUSE_SECONDS)
            return text
