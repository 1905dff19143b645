"""The answer to GET /metrics: always read anew, but however many ask, one at a time and with pauses between.

The text is made by a thread: the event loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, generate_latest

from llama_orch.contract.errors import NotReady

# A rendering takes turns with everything else, and at most a fifth of the time.
_PAUSE_PER_RENDERING = 4.0
_LONGEST_PAUSE_SECONDS = 2.0
_REFRESH_SECONDS = 20.0


class Scrape:
    """Renders a registry. Whoever asks while it rests or waits shares the next rendering."""

    def __init__(self, registry: CollectorRegistry, refresh: Callable[[], Awaitable[None]] | None) -> None:
        self._registry = registry
        self._refresh = refresh
        self._one_at_a_time = asyncio.Lock()
        # One of its own: the loop's default threads may all wait for disks and name servers.
        self._thread = ThreadPoolExecutor(1, "metrics")
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
            took = time.thread_time() - began
            text, rendering_took = await asyncio.get_running_loop().run_in_executor(self._thread, self._generate)
            pause = (took + rendering_took) * _PAUSE_PER_RENDERING
            self._not_before = time.monotonic() + min(pause, _LONGEST_PAUSE_SECONDS)
            return text

    def _generate(self) -> tuple[bytes, float]:
        began = time.thread_time()
        text = generate_latest(self._registry)
        return text, time.thread_time() - began
