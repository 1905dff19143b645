from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import NodeHive
from llama_orch.queen.fleet.prober import MISSES_UNTIL_UNREACHABLE, Prober
from llama_orch.queen.fleet.states import NodeStates
from llama_orch.queen.inventory.view import Host, Inventory
from tests.support.memory_hives import MemoryHives, a_host


class Surroundings(MemoryHives):
    """Nodes by name with a hive each, and what was noted. The hive of `leaves` answers when its node is gone."""

    def __init__(self, *names: str, leaves: str | None = None) -> None:
        super().__init__()
        self.hosts = {name: a_host(name, 8081 + number) for number, name in enumerate(names)}
        for host in self.hosts.values():
            self.add(host)
        self.leaves = leaves
        self.noted: list[str] = []
        self.flushed = 0
        self.missed_tries = 0

    def falls_silent(self, name: str) -> None:
        """Nothing listens where the node's hive did."""
        del self.listening[self.hosts[name].hive_port]

    async def ask(self, host: Host) -> NodeHive:
        if host.name == self.leaves:
            del self.hosts[host.name]
        return await super().ask(host)

    async def missed(self, _name: str, _problem: Problem) -> None:
        self.missed_tries += 1
        raise OSError("the disk is full")

    async def seen(self, name: str, _hive: NodeHive) -> None:
        self.noted.append(name)

    async def flush(self) -> None:
        self.flushed += 1


def a_prober(around: Surroundings, seen: Any, gone: Callable[[str], None] = lambda _: None) -> Prober:
    return Prober(
        cast("Inventory", around), cast("NodeStates", around), around, 1,
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
    around.falls_silent("b")
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


async def test_a_hive_that_is_silent_is_asked_less_and_less_often_and_one_without_a_token_as_ever():
    around = Surroundings("a", "b", "c")
    around.falls_silent("a")
    del around.tokens["b"]
    prober = a_prober(around, around.seen)
    for _ in range(16):
        await prober.ask_all()
    assert around.asked.count("b") == around.asked.count("c") == 16
    assert around.asked.count("a") == 6
    prober.wake()
    await prober.ask_all()
    assert around.asked[-3:] == ["a", "b", "c"], "woken, it asks everybody"
