from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from llama_orch.contract.common import Problem, WorkerCounts
from llama_orch.contract.queen import Node, NodeHive, NodeList, NodeStatus
from llama_orch.queen.ansible.ssh_keys import KnownHosts
from llama_orch.queen.fleet.states import NodeStates
from llama_orch.queen.inventory.view import Host, Inventory
from llama_orch.queen.node_pages import MOST_MADE_IN_ONE_GO, NodePages
from llama_orch.queen.nodes import NodeFacts, Nodes
from llama_orch.queen.records import NodeRecord

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGvFjzuYf0XnC1AQYDSyaEcZ10KTmEYBxkDq6ofBkmdH"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROBLEM = Problem(code="x", message='it says "so"', what_to_do="mend it")


class Fleet(Nodes):
    """Nodes whose inventory and records are dictionaries, and that note what was made of them."""

    def __init__(self, known_hosts: Path, count: int) -> None:
        self.hosts = {f"n{number:04}": self.host(f"n{number:04}") for number in range(count)}
        self.records: dict[str, NodeRecord] = {name: self.record(name) for name in self.hosts}
        self.problem: Problem | None = None
        self.made: list[str] = []
        nothing = cast("Any", None)
        super().__init__(
            inventory=cast("Inventory", self), states=cast("NodeStates", self), store=nothing, jobs=nothing,
            known_hosts=KnownHosts(known_hosts), tokens=nothing, key_file=known_hosts, login_user="u",
            provision_on_change=False, change_own_machine=False, changed=nothing, problems=lambda: [PROBLEM],
        )  # fmt: skip

    @staticmethod
    def host(name: str) -> Host:
        return Host(name, name, 22, "u", {"room": "cellar"}, "rest", name, 8081)

    @staticmethod
    def record(name: str) -> NodeRecord:
        workers = WorkerCounts(total=1, idle=1, busy=0)
        hive = NodeHive(hive_id=name, version="0.1.0", url=f"http://{name}:8081", workers=workers)
        return NodeRecord(name, NodeStatus.ACTIVE, "job-1", NOW, None, hive, NOW)

    def get(self, name: str) -> Any:  # as NodeStates has it
        return self.records.get(name) or NodeRecord(name)

    def shape(self, facts: NodeFacts) -> Node:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.made.append(facts.host.name)
        return Nodes.shape(facts)

    def sees(self, name: str) -> None:
        """The node's hive answered again."""
        record = self.records[name]
        self.records[name] = NodeRecord(
            name, record.status, record.job_id, NOW + timedelta(seconds=5), None, record.hive, NOW
        )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "known_hosts", 1000)


async def most_made_between_two_turns(fleet: Fleet, pages: NodePages) -> int:
    """How many nodes are made to text, at most, until something else on the loop gets its turn."""
    making = asyncio.create_task(pages.whole())
    counts = [len(fleet.made)]
    while not making.done():
        await asyncio.sleep(0)
        counts.append(len(fleet.made))
    await making
    return max(after - before for before, after in itertools.pairwise(counts))


async def test_a_thousand_nodes_take_turns_with_everything_else(fleet: Fleet):
    pages = NodePages(fleet)
    assert 0 < await most_made_between_two_turns(fleet, pages) <= MOST_MADE_IN_ONE_GO
    assert len(fleet.made) == 1000


async def test_the_text_is_what_the_contract_says(fleet: Fleet):
    pages = NodePages(fleet)
    text = await pages.whole()
    told = NodeList.model_validate_json(text)
    assert [node.node_name for node in told.nodes] == sorted(fleet.hosts)
    assert told.nodes[7] == Nodes.shape(NodeFacts(fleet.hosts["n0007"], fleet.records["n0007"], None))
    assert told.problems == [PROBLEM]
    assert told.model_dump_json(exclude={"next_cursor"}).encode() == text, "without a page the answer is what it was"


async def test_only_what_changed_is_made_again(fleet: Fleet, tmp_path: Path):
    pages = NodePages(fleet)
    await pages.whole()
    fleet.made.clear()
    await pages.whole()
    await pages.page(100, "n0100")
    assert fleet.made == []
    fleet.sees("n0003")
    (tmp_path / "known_hosts").write_text(f"n0005 {KEY}\n")
    told = NodeList.model_validate_json(await pages.whole())
    assert fleet.made == ["n0003", "n0005"]
    assert told.nodes[3].last_seen == NOW + timedelta(seconds=5)
    assert told.nodes[5].host_key is not None and told.nodes[4].host_key is None


async def test_many_who_ask_at_once_have_it_made_once(fleet: Fleet):
    pages = NodePages(fleet)
    answers = await asyncio.gather(*(pages.whole() for _ in range(20)))
    assert len(set(answers)) == 1 and len(fleet.made) == 1000


async def test_pages_hold_every_node_once_though_nodes_come_and_go(fleet: Fleet):
    pages = NodePages(fleet)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = NodeList.model_validate_json(text := await pages.page(300, cursor))
        assert b'"next_cursor":' in text
        seen += [node.node_name for node in page.nodes]
        cursor = page.next_cursor
        for name in ("n0299", "n0001", "n0900"):
            fleet.hosts.pop(name, None)
        fleet.hosts["n0450x"] = fleet.host("n0450x")
    assert seen == sorted({*(f"n{number:04}" for number in range(1000)), "n0450x"} - {"n0900"})
    assert len(fleet.made) == 1000, "a page makes nothing that is not on it"


async def test_what_left_is_kept_no_longer(fleet: Fleet):
    pages = NodePages(fleet)
    await pages.whole()
    for name in sorted(fleet.hosts)[10:]:
        del fleet.hosts[name]
    assert len(NodeList.model_validate_json(await pages.whole()).nodes) == 10
    assert len(pages._made) == 10  # pyright: ignore[reportPrivateUsage]  what it holds is what is asked


async def test_a_node_that_leaves_while_the_text_is_made_is_left_out(fleet: Fleet):
    pages = NodePages(fleet)
    making = asyncio.create_task(pages.whole())
    while not fleet.made:  # noqa: ASYNC110  the first of many turns
        await asyncio.sleep(0)
    del fleet.hosts["n0999"]
    assert len(NodeList.model_validate_json(await making).nodes) == 999


async def test_the_last_page_and_the_empty_one_say_so(fleet: Fleet):
    pages = NodePages(fleet)
    last = NodeList.model_validate_json(await pages.page(500, "n0899"))
    assert len(last.nodes) == 100 and last.next_cursor is None
    assert NodeList.model_validate_json(await pages.page(10, "z")).nodes == []
    whole = NodeList.model_validate_json(await pages.page(500, "n0499"))
    assert len(whole.nodes) == 500 and whole.next_cursor is None, "a page that ends with the list is the last"
