"""One download from its start to its end: a process each try, a bound on silence, and the pace of it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from llama_orch.base import backoff
from llama_orch.base.child import LONGEST_LINE, Child
from llama_orch.base.processes import interpreter
from llama_orch.contract.home import HOME_VARIABLE

from ...problems import Failed, ToldFailure
from ..hub import environment as hub_environment
from ..hub.description import FetchJob

log = logging.getLogger(__name__)
STARTING_S = 60.0
# Between two reports lies the flushing of all that came to a disk that may be slow.
VERIFYING_S = 900.0
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", HOME_VARIABLE),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
)


class Progress(BaseModel):
    """So many bytes are there, or checked."""

    event: Literal["downloading", "verifying"]
    done: int = Field(ge=0)


class _Mark(BaseModel):
    event: Literal["started", "ready"]


class _Failure(ToldFailure):
    event: Literal["failed"]


# What a line of the child may be.
_EVENT: TypeAdapter[Progress | _Mark | _Failure] = TypeAdapter(
    Annotated[Progress | _Mark | _Failure, Field(discriminator="event")]
)
OnProgress = Callable[[Progress], None]


class Pace:
    """How much is done, and how fast in the last seconds."""

    WINDOW_S = 5.0

    def __init__(self) -> None:
        self.done = 0
        self._samples: deque[tuple[float, int]] = deque()

    def at(self, done: int, now: float) -> None:
        """`done` bytes are there at that monotonic time."""
        if done < self.done:
            self._samples.clear()
        self.done = done
        self._samples.append((now, done))
        while now - self._samples[0][0] > self.WINDOW_S:
            self._samples.popleft()

    def bytes_per_second(self, now: float) -> float:
        """The rate over the last seconds; 0 when nothing came."""
        recent = [sample for sample in self._samples if now - sample[0] <= self.WINDOW_S]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (max(now, recent[-1][0]) - recent[0][0])


async def until_ready(job: FetchJob, on_progress: OnProgress, *, attempts: int, stall_s: float) -> None:
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
            return await _attempt(job, watch, stall_s)
        except Failed as failed:
            tries += 1
            if not failed.retry or tries >= attempts:
                raise
            wait = backoff.delay(tries)
            log.warning("download of %s: %s; trying again in %.1f s", job.model.repo, failed, wait)
            await asyncio.sleep(wait)


async def _attempt(job: FetchJob, on_progress: OnProgress, stall_s: float) -> None:
    command = [interpreter(), "-m", "llama_orch.hive.models.downloads.child"]
    try:
        child = await Child.start(command, environment=environment(job.endpoint, job.cache))
    except OSError as error:
        raise _broken(f"cannot be started: {error.strerror}") from None
    try:
        child.say(job.model_dump_json().encode() + b"\n")
        timeout = max(STARTING_S, stall_s)
        while True:
            event = await _next_event(child, timeout)
            timeout = {"started": max(stall_s, 15.0), "verifying": VERIFYING_S}.get(event.event, stall_s)
            if event.event == "ready":
                return
            if isinstance(event, _Failure):
                raise event.as_failed()
            if isinstance(event, Progress):
                on_progress(event)
    finally:
        await child.end()


async def _next_event(child: Child, timeout: float) -> Progress | _Mark | _Failure:
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
        return _EVENT.validate_json(line)
    except ValidationError:
        raise _broken("said what is no report of a download") from None


def _broken(how: str) -> Failed:
    return Failed("download_failed", f"the download's process {how}", "ask again", retry=True)


def environment(endpoint: str, cache: Path) -> dict[str, str]:
    """What a process that speaks to the hub gets of the agent's environment. Raises Failed where that cannot work."""
    hub_environment.check(endpoint)
    # An empty variable is none: the library would take it for an address.
    kept = {name: os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)}
    hub = {"HF_ENDPOINT": endpoint} if endpoint else {}
    return {**kept, **hub, "HF_HOME": str(cache / ".home")}


def monotonic() -> float:
    """The clock that Pace is told."""
    return time.monotonic()
