"""Keep services running until Ctrl-C or the end of one of them, then stop everything."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from llama_orch.contract.errors import ApiError

from .connection import Unusable
from .local import Home
from .output import line, out
from .running import Failed, tell_any

INTERRUPTED = 130


async def keep_up(home: Home, story: Callable[[], Awaitable[None]], *, exit_after_answer: bool) -> int:
    """Run `story` in a locked home, then stay until a signal or the end of a child; stop everything.

    Returns the exit status. Raises Unusable where the home is held by another process or cannot be used.
    """
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            home.hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    with home.locked():
        try:
            return await _until_stopped(home, story, stop, exit_after_answer=exit_after_answer)
        finally:
            # From here on a signal means: faster.
            stop.set()
            with step("Stopping workers, hive and queen"):
                await home.stop()
            line("Stopped; nothing is left running.")


async def _until_stopped(
    home: Home, story: Callable[[], Awaitable[None]], stop: asyncio.Event, *, exit_after_answer: bool
) -> int:
    asked_to_stop = asyncio.ensure_future(stop.wait())
    telling = asyncio.ensure_future(story())
    watching: asyncio.Future[None] | None = None
    try:
        await asyncio.wait({asked_to_stop, telling}, return_when=asyncio.FIRST_COMPLETED)
        if not telling.done():
            line("\nInterrupted", style="yellow")
            return INTERRUPTED
        await telling
        if exit_after_answer:
            return 0
        watching = asyncio.ensure_future(home.watch())
        await asyncio.wait({asked_to_stop, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching
    except (ApiError, Failed, Unusable) as error:
        # Told before the stop, since that takes a while.
        return tell_any(error)
    else:
        line()
        return 0
    finally:
        tasks: list[asyncio.Future[Any]] = [task for task in (asked_to_stop, telling, watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """A spinner while something short is done; a line where there is no terminal."""
    if out.is_terminal:
        with out.status(text):
            yield
    else:
        line(f"{text} …")
        yield
