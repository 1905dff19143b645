"""One download from its start to its end: a process each try, and a bound on its silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pydantic import ValidationError

from llama_orch.base import backoff
from llama_orch.base.child import LONGEST_LINE, Child
from llama_orch.base.processes import interpreter

from ...problems import Failed
from ..hub.description import FetchOrder
from ..hub.environment import environment
from .lines import LINE, Failure, Line, Progress

log = logging.getLogger(__name__)
STARTING_S = 60.0
# Between two reports lies the flushing of all that came to a disk that may be slow.
VERIFYING_S = 900.0
OnProgress = Callable[[Progress], None]


async def until_ready(order: FetchOrder, on_progress: OnProgress, *, attempts: int, stall_s: float) -> None:
    """Try until the model is ready. Raises Failed when it cannot be, or after `attempts` tries without progress."""
    tries, furthest = 0, -1

    def watch(progress: Progress) -> None:
        nonlocal tries, furthest
        if progress.done > furthest:
            # The first report of a try tells what was there before it, so only a second one is progress.
            tries = 0 if furthest >= 0 else tries
            furthest = progress.done
        on_progress(progress)

    while True:
        try:
            return await _attempt(order, watch, stall_s)
        except Failed as failed:
            tries += 1
            if not failed.retry or tries >= attempts:
                raise
            wait = backoff.delay(tries)
            log.warning("download of %s: %s; trying again in %.1f s", order.model.repo, failed, wait)
            await asyncio.sleep(wait)


async def _attempt(order: FetchOrder, on_progress: OnProgress, stall_s: float) -> None:
    command = [interpreter(), "-m", "llama_orch.hive.models.downloads.child"]
    try:
        child = await Child.start(command, environment=environment(order.endpoint, order.cache))
    except OSError as error:
        raise _broken(f"cannot be started: {error.strerror}") from None
    try:
        child.say(order.model_dump_json().encode() + b"\n")
        timeout = max(STARTING_S, stall_s)
        while True:
            event = await _next_event(child, timeout)
            timeout = {"started": max(stall_s, 15.0), "verifying": VERIFYING_S}.get(event.event, stall_s)
            if event.event == "ready":
                return
            if isinstance(event, Failure):
                raise event.as_failed()
            if isinstance(event, Progress):
                on_progress(event)
    finally:
        await child.end()


async def _next_event(child: Child, timeout: float) -> Line:
    """What the child says next. Raises Failed: whatever is no whole line of ours is a crash of it."""
    try:
        line = await asyncio.wait_for(child.stdout.readline(), timeout)
    except TimeoutError:
        raise Failed(
            "download_stalled",
            f"the hub sent nothing for {timeout:.0f} s",
            "check the hive's way to the hub, then ask again: it goes on where it stopped",
            retry=True,
        ) from None
    except ValueError:
        raise _broken(f"said more in one line than {LONGEST_LINE} bytes") from None
    if not line.endswith(b"\n"):
        raise _broken("ended in the middle of what it said" if line else "ended")
    try:
        return LINE.validate_json(line)
    except ValidationError:
        raise _broken("said what is no report of a download") from None


def _broken(how: str) -> Failed:
    return Failed("download_failed", f"the download's process {how}", "ask again", retry=True)
