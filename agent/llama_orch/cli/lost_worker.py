"""Why a worker gave no whole answer: where its process is gone, the hive knows how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from llama_orch.client import Hive, NoAnswer
from llama_orch.contract.errors import ApiError
from llama_orch.contract.hive import Worker, WorkerStatus

from .connection import Unusable, is_local
from .running import Failed
from .watching import SERVING, problem

# A hive sees within half a second that a process is gone.
ASK_SECONDS = 2.0
_LOOK_SECONDS = 0.1


async def explain(
    error: NoAnswer, open_hive: Callable[[], Awaitable[Hive]], url: str, asked: Worker | None = None
) -> NoAnswer | Failed:
    """What to tell instead of `error`, in which a request to the worker at `url` ended: what the hive knows of it.

    `asked` is that worker as it was before. Takes ASK_SECONDS at most, and returns `error` where no hive can be asked
    or it does not know the worker.
    """
    first = last = asked
    with contextlib.suppress(TimeoutError, ApiError, Unusable):
        async with asyncio.timeout(ASK_SECONDS), await open_hive() as hive:
            while True:
                workers = await hive.list_workers()
                now = next((worker for worker in workers if _is_it(worker, url, first)), None)
                if now is not None:
                    if _ended(now, first or now):
                        return _why(now)
                    first, last = first or now, now
                elif first is not None:
                    return Failed(f"{error.message}: worker {first.id} was stopped; see 'llama-orch workers list'")
                elif all(worker.url for worker in workers):
                    # One whose process is gone has no address until it is started again.
                    return error
                await asyncio.sleep(_LOOK_SECONDS)
    if last is None:
        return error
    return Failed(
        f"{error.message}\nThe hive says that worker {last.id} is {last.status}; its log is in the hive's log_dir."
    )


def _is_it(worker: Worker, url: str, known: Worker | None) -> bool:
    if known is not None:
        return worker.id == known.id
    if worker.url is None:
        return False
    ours, asked = urlsplit(worker.url), urlsplit(url)
    same_host = ours.hostname == asked.hostname or (is_local(worker.url) and is_local(url))
    return same_host and ours.port == asked.port


def _ended(now: Worker, before: Worker) -> bool:
    # Of one that serves, the last error may be of long ago.
    news = now.restarts > before.restarts or now.status not in {*SERVING, WorkerStatus.DRAINING}
    return news and now.last_error is not None


def _why(worker: Worker) -> Failed:
    text = problem(f"worker {worker.id} gave no whole answer", worker.last_error)
    if worker.status != WorkerStatus.FAILED:
        text += "\nIt is started again by itself: ask again in a moment."
    return Failed(text)
