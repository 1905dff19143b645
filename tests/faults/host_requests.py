"""A request to a hive that is cut at any moment of it, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import aiohttp

from .host_hive import HostHive
from .host_world import EXTRA, HostWorld, spawn_body
from .ledger import PATH
from .promises import BOOT_S


async def cut_a_request(world: HostWorld, hive: HostHive, random: Random, cut: Callable[[], Awaitable[None]]) -> None:
    """Cut the start or the end of the worker `extra`: what was acknowledged holds, all else may be.

    Raises AssertionError where it does not hold.
    """
    method = random.choice(["POST", "DELETE"])
    if method == "DELETE":
        worker = await world.spawn(hive, EXTRA)
        asking = asyncio.create_task(hive.call(method, f"{PATH}/{worker['id']}"))
    else:
        asking = asyncio.create_task(hive.call(method, PATH, json=spawn_body(EXTRA)))
    await asyncio.sleep(random.uniform(0, 1.0))
    await cut()
    status = await _tried(asking)
    await world.until_answers(hive, BOOT_S)
    there = EXTRA in await hive.workers()
    assert status != 200 or there is (method == "POST"), f"{method} was acknowledged, and the worker is there: {there}"
    await world.delete(hive, EXTRA)


async def _tried(asking: asyncio.Task[tuple[int, Any]]) -> int:
    """The status of a request that may have been cut; 0 where there was no answer."""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        return (await asking)[0]
    return 0
