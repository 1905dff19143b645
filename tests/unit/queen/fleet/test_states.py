from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from llama_orch.contract.common import Problem, WorkerCounts
from llama_orch.contract.queen import NodeHive, NodeStatus
from llama_orch.queen.fleet import states as node_state
from llama_orch.queen.fleet.states import NodeEvent, NodeStates, after
from llama_orch.queen.store.store import Store

PROBLEM = Problem(code="x", message="y")
HIVE = NodeHive(hive_id="n", version="0.1.0", url="http://x", workers=WorkerCounts(total=0, idle=0, busy=0))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def states(store: Store) -> NodeStates:
    return NodeStates(store, failed_hold_s=1000)


@pytest.mark.parametrize("status", NodeStatus)
def test_every_event_may_come_at_any_time_and_a_job_has_the_last_word(status: NodeStatus):
    made = {event: after(status, event) for event in NodeEvent}
    assert made[NodeEvent.PROVISION_SUCCEEDED] is NodeStatus.ACTIVE
    assert made[NodeEvent.PROVISION_FAILED] is made[NodeEvent.REMOVE_FAILED] is NodeStatus.FAILED
    if status in {NodeStatus.PROVISIONING, NodeStatus.REMOVING}:
        assert made[NodeEvent.SEEN] is made[NodeEvent.MISSED] is status, "its job decides"


def test_every_status_but_the_first_can_be_reached():
    made = {after(status, event) for status in NodeStatus for event in NodeEvent if after(status, event) is not status}
    assert set(NodeStatus) - made == {NodeStatus.REGISTERED, NodeStatus.DRAINING}, "nothing drains a node yet"


async def test_what_comes_at_the_same_time_is_not_lost(states: NodeStates, store: Store):
    names = [f"n{number}" for number in range(20)]
    for name in names:
        await states.take(name, NodeEvent.PROVISION_BEGAN, job_id="old")
    changes = [
        change
        for name in names
        for change in (
            states.seen(name, HIVE),
            states.take(name, NodeEvent.PROVISION_SUCCEEDED),
            states.belongs_to(name, "new"),
            states.flush(),
        )
    ]
    await asyncio.gather(*changes)
    await states.flush()
    for records in ({name: states.get(name) for name in names}, await store.nodes.all()):
        assert {(r.status, r.job_id, r.hive) for r in records.values()} == {(NodeStatus.ACTIVE, "new", HIVE)}


async def test_the_life_of_a_node(states: NodeStates):
    seen = [states.get("n").status]
    seen.append((await states.take("n", NodeEvent.PROVISION_BEGAN, job_id="j1")).status)
    seen.append((await states.seen("n", HIVE)).status)
    seen.append((await states.take("n", NodeEvent.PROVISION_SUCCEEDED)).status)
    seen.append((await states.missed("n", PROBLEM)).status)
    seen.append((await states.seen("n", HIVE)).status)
    seen.append((await states.take("n", NodeEvent.REMOVE_BEGAN, job_id="j2")).status)
    assert [str(status) for status in seen] == [
        *("registered", "provisioning", "provisioning", "active", "unreachable", "active", "removing")
    ]
    assert states.get("n").job_id == "j2" and states.get("n").last_error is None


async def test_a_failed_node_stays_failed_for_a_while_though_an_old_hive_answers(store: Store):
    states = NodeStates(store, failed_hold_s=1000)
    await states.take("n", NodeEvent.PROVISION_BEGAN)
    await states.take("n", NodeEvent.PROVISION_FAILED, problem=PROBLEM)
    record = await states.seen("n", HIVE)
    assert (record.status, record.last_error, record.hive) == (NodeStatus.FAILED, PROBLEM, HIVE)
    impatient = NodeStates(store, failed_hold_s=0)
    await impatient.load()
    record = await impatient.seen("n", HIVE)
    assert (record.status, record.last_error) == (NodeStatus.ACTIVE, None)


@pytest.mark.parametrize("hours", [-2, 2], ids=["back", "ahead"])
async def test_a_clock_that_is_set_neither_ends_nor_prolongs_that(
    store: Store, monkeypatch: pytest.MonkeyPatch, hours: int
):
    class Wall(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    now = [500.0]
    states = NodeStates(store, failed_hold_s=60, clock=lambda: now[0])
    await states.take("n", NodeEvent.PROVISION_FAILED, problem=PROBLEM)
    monkeypatch.setattr(node_state, "datetime", Wall)
    now[0] += 59
    assert (await states.seen("n", HIVE)).status is NodeStatus.FAILED
    now[0] += 1
    assert (await states.seen("n", HIVE)).status is NodeStatus.ACTIVE


async def test_a_restart_holds_it_no_longer_whatever_the_clock_says(store: Store, monkeypatch: pytest.MonkeyPatch):
    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) - timedelta(days=1)

    now = [500.0]
    await NodeStates(store, failed_hold_s=60).take("n", NodeEvent.PROVISION_FAILED, problem=PROBLEM)
    monkeypatch.setattr(node_state, "datetime", Yesterday)
    states = NodeStates(store, failed_hold_s=60, clock=lambda: now[0])
    await states.load()
    assert (await states.seen("n", HIVE)).status is NodeStatus.FAILED
    now[0] += 60
    assert (await states.seen("n", HIVE)).status is NodeStatus.ACTIVE


async def test_what_a_probe_saw_is_shown_though_the_disk_is_full_and_written_later(
    store: Store, states: NodeStates, monkeypatch: pytest.MonkeyPatch
):
    await states.take("n", NodeEvent.PROVISION_SUCCEEDED)

    async def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.nodes, "save", refuse)
        assert (await states.missed("n", PROBLEM)).status is NodeStatus.UNREACHABLE
        assert states.get("n").status is NodeStatus.UNREACHABLE
        with pytest.raises(OSError, match="No space"):
            await states.take("n", NodeEvent.REMOVE_BEGAN)
        assert states.get("n").status is NodeStatus.UNREACHABLE, "what a job does is written before it is shown"
        assert (await states.seen("n", HIVE)).status is states.get("n").status is NodeStatus.ACTIVE
        await states.missed("n", PROBLEM)
    assert (await store.nodes.all())["n"].status is NodeStatus.ACTIVE
    await states.flush()
    assert (await store.nodes.all())["n"].status is NodeStatus.UNREACHABLE


async def test_a_node_that_was_never_a_hive_is_not_unreachable(states: NodeStates):
    assert (await states.missed("n", PROBLEM)).status is NodeStatus.REGISTERED


async def test_another_process_reads_what_was_written(store: Store, states: NodeStates):
    await states.take("n", NodeEvent.PROVISION_BEGAN, job_id="j")
    await states.take("n", NodeEvent.PROVISION_SUCCEEDED)
    await states.seen("n", HIVE)
    await states.flush()
    again = NodeStates(store, 0)
    await again.load()
    assert again.get("n") == states.get("n") and again.get("n").last_seen is not None
    await again.forget_all_but([])
    assert await store.nodes.all() == {}
