from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llama_orch.contract.common import Problem, WorkerCounts
from llama_orch.contract.queen import NodeHive, NodeStatus
from llama_orch.queen.node_state import TRANSITIONS, NodeEvent, NodeStates, WrongTransition, after
from llama_orch.queen.store import Store

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


def test_every_status_has_a_way_on():
    assert set(TRANSITIONS) == set(NodeStatus)
    reachable = {new for old, events in TRANSITIONS.items() for new in events.values() if new is not old}
    assert set(NodeStatus) - reachable == {NodeStatus.REGISTERED, NodeStatus.DRAINING}, "nothing drains a node yet"


@pytest.mark.parametrize("status", NodeStatus)
def test_a_probe_can_come_at_any_time(status: NodeStatus):
    assert after(status, NodeEvent.SEEN) and after(status, NodeEvent.MISSED)


@pytest.mark.parametrize(
    ("status", "event"),
    [
        (NodeStatus.REGISTERED, NodeEvent.PROVISION_SUCCEEDED),
        (NodeStatus.REMOVING, NodeEvent.PROVISION_BEGAN),
        (NodeStatus.PROVISIONING, NodeEvent.REMOVE_BEGAN),
        (NodeStatus.ACTIVE, NodeEvent.REMOVE_FAILED),
    ],
)
def test_what_cannot_happen_is_refused(status: NodeStatus, event: NodeEvent):
    with pytest.raises(WrongTransition, match=str(status)):
        after(status, event)


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
    assert await store.node_records() == {}
