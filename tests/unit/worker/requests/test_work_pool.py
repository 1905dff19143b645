"""Who gets a thread, who waits, and what ends the work of those who have gone."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from llama_orch.contract.errors import Busy
from llama_orch.worker import budget
from llama_orch.worker.requests import work_pool
from llama_orch.worker.requests.work_pool import WorkPool


class Held:
    """Work that goes on until it is let go, or nobody waits for it any more."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.began = threading.Event()
        self.ended: list[BaseException | None] = []

    def __call__(self) -> str:
        self.began.set()
        try:
            while not self.go_on.wait(0.001):
                budget.spend(1000)
        except budget.BudgetSpent as error:
            self.ended.append(error)
            raise
        self.ended.append(None)
        return "done"

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 20)


async def test_work_comes_back_with_its_result_and_its_error():
    pool = WorkPool("tested", 1)
    assert await pool.run("a", lambda: 5) == 5
    with pytest.raises(KeyError):
        await pool.run("a", lambda: {}["x"])
    assert await pool.run("a", lambda: 6) == 6


async def test_who_fills_the_pool_leaves_a_thread_to_others():
    pool, held = WorkPool("tested", 2), [Held() for _ in range(5)]
    attack = [asyncio.create_task(pool.run("attacker", one)) for one in held]
    await held[0].has_begun()
    assert await asyncio.wait_for(pool.run("other", lambda: "read"), 20) == "read"
    assert not held[1].began.is_set()
    for one in held:
        one.go_on.set()
    assert await asyncio.gather(*attack) == ["done"] * 5


async def test_scopes_take_turns():
    pool, order = WorkPool("tested", 1), list[str]()
    first = Held()
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(pool.run("a", first))]
    await first.has_begun()
    tasks += [asyncio.create_task(pool.run("a", lambda n=n: order.append(f"a{n}"))) for n in range(3)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(pool.run("b", lambda n=n: order.append(f"b{n}"))) for n in range(2)]
    await asyncio.sleep(0)
    first.go_on.set()
    await asyncio.gather(*tasks)
    assert order == ["a0", "b0", "a1", "b1", "a2"]


async def test_the_work_of_a_client_that_left_is_ended_and_its_turn_given_on():
    pool, running, waiting = WorkPool("tested", 1), Held(), Held()
    tasks = [asyncio.create_task(pool.run("a", one)) for one in (running, waiting)]
    await running.has_begun()
    for task in tasks:
        task.cancel()
    assert await asyncio.wait_for(pool.run("a", lambda: "read"), 20) == "read"
    assert isinstance(running.ended[0], budget.Abandoned)
    assert not waiting.began.is_set()
    assert not pool._running and not pool._lines


async def test_too_many_of_one_scope_are_sent_away_and_nobody_else():
    pool, held = WorkPool("tested", 1), Held()
    tasks = [asyncio.create_task(pool.run("a", held)) for _ in range(work_pool.MOST_WAITING + 1)]
    await held.has_begun()
    with pytest.raises(Busy):
        await pool.run("a", lambda: None)
    other = asyncio.create_task(pool.run("b", lambda: "read"))
    held.go_on.set()
    assert await other == "read"
    await asyncio.gather(*tasks)


async def test_a_turn_that_never_comes_ends_the_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(work_pool, "WAIT_SECONDS", 0.01)
    pool, held = WorkPool("tested", 1), Held()
    task = asyncio.create_task(pool.run("a", held))
    await held.has_begun()
    with pytest.raises(Busy):
        await pool.run("b", lambda: None)
    held.go_on.set()
    await task
    assert await pool.run("b", lambda: "read") == "read"


async def test_a_pool_that_does_nothing_for_those_who_wait_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(work_pool, "STALLED_SECONDS", -1.0)
    pool, held = WorkPool("tested", 1), Held()
    assert pool.stalled_seconds == 0
    tasks = [asyncio.create_task(pool.run("a", held))]
    await held.has_begun()
    assert pool.stalled_seconds == 0
    tasks.append(asyncio.create_task(pool.run("a", lambda: "read")))
    await asyncio.sleep(0)
    assert pool.stalled_seconds > 0
    held.go_on.set()
    await asyncio.gather(*tasks)
    assert pool.stalled_seconds == 0


def test_a_budget_ends_with_its_steps_and_its_time():
    with budget.limited(budget.Budget(steps=1000).begun()), pytest.raises(budget.BudgetSpent, match="1000 steps"):
        for _ in range(2000):
            budget.spend()
    with budget.limited(budget.Budget(cpu_seconds=0).begun()), pytest.raises(budget.BudgetSpent, match="0 seconds"):
        for _ in range(1000):
            budget.spend()
