from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import NodeHive
from llama_orch.queen.fleet.hives import HiveClient, HiveSilent
from llama_orch.queen.fleet.prober import MISSES_UNTIL_UNREACHABLE, Prober
from llama_orch.queen.fleet.states import NodeStates
from llama_orch.queen.inventory.view import Host, Inventory


class Surroundings:
    """Nodes by name, and what was noted of them. The hive of `leaves` answers when its node is gone."""

    def __init__(self, *names: str, leaves: str | None = None) -> None:
        self.hosts = {name: Host(name, name, 22, "u", {}, "rest", name, 8081) for name in names}
        self.leaves = leaves
        self.noted: list[str] = []
        self.flushed = 0
        self.silent: set[str] = set()
        self.missed_tries = 0

    async def missed(self, _name: str, _problem: Problem) -> None:
        self.missed_tries += 1
        raise OSError("the disk is full")

    async def ask(self, host: Host) -> NodeHive:
        if host.name in self.silent:
            raise HiveSilent("hive_unreachable", "no hive answers", "look")
        if host.name == self.leaves:
            del self.hosts[host.name]
        return cast("NodeHive", None)

    async def seen(self, name: str, _hive: NodeHive) -> None:
        self.noted.append(name)

    async def flush(self) -> None:
        self.flushed += 1


def a_prober(around: Surroundings, seen: Any, gone: Callable[[str], None] = lambda _: None) -> Prober:
    return Prober(
        cast("Inventory", around), cast("NodeStates", around), cast("HiveClient", around), 1,
        failed=lambda _: None, seen=seen, gone=gone,
    )  # fmt: skip


async def test_what_cannot_be_dealt_with_costs_no_other_hive_its_answer():
    around = Surroundings("a", "b", "c")
    dealt_with: list[str] = []

    async def deal_with(name: str, _hive: NodeHive) -> None:
        if name == "b":
            raise OSError("the disk is full")
        dealt_with.append(name)

    await a_prober(around, deal_with).ask_all()
    assert (around.noted, dealt_with, around.flushed) == (["a", "b", "c"], ["a", "c"], 1)


async def test_a_hive_that_is_silent_costs_no_other_its_answer_where_that_cannot_be_noted():
    around = Surroundings("a", "b", "c")
    around.silent.add("b")
    prober = a_prober(around, around.seen)
    for _ in range(MISSES_UNTIL_UNREACHABLE):
        await prober.ask_all()
    assert around.flushed == MISSES_UNTIL_UNREACHABLE and around.missed_tries == 1
    assert around.noted.count("a") == around.noted.count("c") == 2 * MISSES_UNTIL_UNREACHABLE


async def test_that_a_node_is_gone_is_told_once():
    around = Surroundings("a", "b")
    gone: list[str] = []
    prober = a_prober(around, around.seen, gone.append)
    await prober.ask_all()
    del around.hosts["b"]
    await prober.ask_all()
    await prober.ask_all()
    assert gone == ["b"]


async def test_a_node_that_leaves_while_its_hive_is_asked_is_not_noted():
    around = Surroundings("a", "b", leaves="a")
    dealt_with: list[str] = []

    async def deal_with(name: str, _hive: NodeHive) -> None:
        dealt_with.append(name)

    await a_prober(around, deal_with).ask_all()
    assert around.noted == dealt_with == ["b"]
