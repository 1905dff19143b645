"""One download from its start to its end: a process each try, a bound on silence, and the pace of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_orch.contract.common import Problem

from . import backoff, hub_environment
from .hub_model import FetchJob
from .problems import Failed
from .process import interpreter

log = logging.getLogger(__name__)
STARTING_S = 60.0
# Between two reports lies the flushing of all that came to a disk that may be slow.
VERIFYING_S = 900.0
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
)
OnEvent = Callable[[dict[str, Any]], None]


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


async def until_ready(job: FetchJob, on_event: OnEvent, *, attempts: int, stall_s: float) -> None:
    """Try until the model is ready. Raises Failed when it cannot be, or after `attempts` tries without progress."""
    tries, furthest = 0, -1

    def watch(event: dict[str, Any]) -> None:
        nonlocal tries, furthest
        if event.get("done", -1) > furthest:
            # The first report of a try tells what was there before it, so only a second one is progress.
            tries = 0 if furthest >= 0 else tries
            furthest = event["done"]
        on_event(event)

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


async def _attempt(job: FetchJob, on_event: OnEvent, stall_s: float) -> None:
    child = await asyncio.create_subprocess_exec(
        *(interpreter(), "-m", "llama_orch.hive.download_child"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(job.endpoint, job.cache),
        start_new_session=True,
    )
    try:
        assert child.stdin is not None and child.stdout is not None  # noqa: S101  asked for above
        child.stdin.write(job.model_dump_json().encode() + b"\n")
        timeout = max(STARTING_S, stall_s)
        while True:
            try:
                line = await asyncio.wait_for(child.stdout.readline(), timeout)
            except TimeoutError:
                raise Failed(
                    "download_stalled",
                    f"the hub sent nothing for {timeout:.0f} s",
                    "check the hive's way to the hub, then ask again: it goes on where it stopped",
                    retry=True,
                ) from None
            if not line:
                raise Failed("download_failed", "the download's process ended", "ask again", retry=True)
            event = json.loads(line)
            timeout = {"started": max(stall_s, 15.0), "verifying": VERIFYING_S}.get(event["event"], stall_s)
            if event["event"] == "ready":
                return
            if event["event"] == "failed":
                problem = Problem.model_validate(event["problem"])
                raise Failed(problem.code, problem.message, problem.what_to_do, retry=event["retry"])
            on_event(event)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


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
