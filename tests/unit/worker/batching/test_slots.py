from __future__ import annotations

import asyncio

import pytest

from llama_orch.contract.errors import Busy, NotReady
from llama_orch.worker.batching.slots import Slot, Slots

LONG = 60.0


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_slot_is_taken_at_once_and_given_back_once():
    slots = Slots(2, queue_limit=0)
    first, second = await slots.take(LONG), await slots.take(LONG)
    assert (slots.busy, slots.queued) == (2, 0)
    first.release()
    first.release()
    assert slots.busy == 1
    second.release()
    assert slots.busy == 0


async def test_who_came_first_is_served_first():
    slots = Slots(1, queue_limit=10)
    order: list[int] = []

    async def ask(number: int) -> None:
        slot = await slots.take(LONG)
        order.append(number)
        await asyncio.sleep(0)
        slot.release()

    held = await slots.take(LONG)
    tasks = [asyncio.create_task(ask(number)) for number in range(10)]
    await settle()
    assert (slots.busy, slots.queued) == (1, 10)
    held.release()
    await asyncio.gather(*tasks)
    assert order == list(range(10))
    assert (slots.busy, slots.queued) == (0, 0)


async def test_a_newcomer_does_not_overtake_who_waits():
    slots = Slots(1, queue_limit=10)
    held = await slots.take(LONG)
    waiting = asyncio.create_task(slots.take(LONG))
    await settle()
    held.release()
    late = asyncio.create_task(slots.take(LONG))
    await settle()
    assert waiting.done() and not late.done()
    waiting.result().release()
    (await late).release()


async def test_room_for_all_or_none():
    slots = Slots(2, queue_limit=1)
    held = await slots.take(LONG)
    slots.require_room(2)
    with pytest.raises(Busy):
        slots.require_room(3)
    assert (slots.busy, slots.queued) == (1, 0)
    held.release()


async def test_a_full_queue_sends_away_with_a_time_to_come_back():
    slots = Slots(1, queue_limit=1)
    held = await slots.take(LONG)
    waiting = asyncio.create_task(slots.take(LONG))
    await settle()
    with pytest.raises(Busy) as caught:
        await slots.take(LONG)
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
    assert caught.value.status == 429
    held.release()
    (await waiting).release()


async def test_waiting_ends_after_its_time():
    slots = Slots(1, queue_limit=1)
    held = await slots.take(LONG)
    with pytest.raises(Busy):
        await slots.take(0.01)
    assert slots.queued == 0
    held.release()
    assert slots.busy == 0


async def test_who_leaves_the_queue_takes_no_turn():
    slots = Slots(1, queue_limit=2)
    held = await slots.take(LONG)
    leaver, stayer = asyncio.create_task(slots.take(LONG)), asyncio.create_task(slots.take(LONG))
    await settle()
    leaver.cancel()
    await settle()
    assert slots.queued == 1
    held.release()
    (await stayer).release()
    assert slots.busy == 0


async def test_a_turn_that_comes_with_the_cancellation_is_passed_on():
    slots = Slots(1, queue_limit=2)
    held = await slots.take(LONG)
    leaver, stayer = asyncio.create_task(slots.take(LONG)), asyncio.create_task(slots.take(LONG))
    await settle()
    held.release()
    leaver.cancel()
    taken = await asyncio.wait_for(stayer, 5)
    assert isinstance(taken, Slot)
    taken.release()
    assert slots.busy == 0


async def test_closed_slots_send_away_who_waits_and_let_who_runs_finish():
    slots = Slots(1, queue_limit=2)
    held = await slots.take(LONG)
    waiting = asyncio.create_task(slots.take(LONG))
    await settle()
    slots.close("going down")
    with pytest.raises(NotReady, match="going down"):
        await waiting
    with pytest.raises(NotReady):
        await slots.take(LONG)
    assert slots.busy == 1
    held.release()
    assert slots.busy == 0


async def test_no_slot_is_lost_in_a_crowd_that_comes_and_goes():
    slots = Slots(2, queue_limit=1)
    outcomes: list[str] = []

    async def ask(number: int) -> None:
        try:
            slot = await slots.take(LONG)
        except Busy:
            outcomes.append("busy")
            return
        try:
            await asyncio.sleep(0)
        finally:
            slot.release()
        outcomes.append("served")

    tasks = []
    for number in range(400):
        tasks.append(asyncio.create_task(ask(number)))
        if number % 3 == 0:
            await asyncio.sleep(0)
        if number % 7 == 0:
            tasks[number // 2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (slots.busy, slots.queued) == (0, 0)
    assert "served" in outcomes and "busy" in outcomes
    (await slots.take(LONG)).release()
