"""Threads of their own for looking at processes: a disk with models that hangs keeps nobody from watching workers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_THREADS = ThreadPoolExecutor(4, thread_name_prefix="looking")

P = ParamSpec("P")
T = TypeVar("T")


async def look(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What `work` finds in `/proc`, or in a worker's own folder. As `asyncio.to_thread`, whose threads may all hang."""
    call = functools.partial(work, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)
