"""State changes that belong to the application: who waits for one that the application's stop cut off is told."""

from __future__ import annotations

import asyncio

import pytest

from llama_orch.contract.errors import NotReady
from llama_orch.web.tasks import OwnedTasks


async def test_a_client_that_leaves_stops_nothing():
    tasks, done = OwnedTasks(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    waiting = asyncio.create_task(tasks.finish(work(), "work"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(done.wait(), 10)


async def test_whoever_waits_when_the_application_stops_is_told_and_nothing_begins_any_more():
    tasks, began = OwnedTasks(), asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(tasks.finish(work(), "work"))
    await began.wait()
    await tasks.cancel_all(timeout=5)
    with pytest.raises(NotReady, match="ask again") as error:
        await waiting
    assert error.value.error_code == "stopping"
    with pytest.raises(NotReady, match="is being stopped"):
        await tasks.finish(work(), "late")
