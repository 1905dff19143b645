"""What anything that asks hives does: a suite that the real client and hives in memory pass."""

from __future__ import annotations

from typing import Protocol

import pytest

from llama_orch.queen.fleet.hives import Hives, HiveSilent, NoTokenYet

from .memory_hives import a_host

TOKEN = "the-token-of-this-one-hive"
OTHER = "the-token-of-another-hive-"


class Fleet(Protocol):
    """What asks, and whom there is to ask."""

    hives: Hives

    def give_token(self, node_name: str, token: str) -> None:
        """The node's token, as the queen knows it, is this one from now on."""
        ...

    async def listen(self, hive_id: str, token: str) -> int:
        """Let a hive listen on loopback; answers its port."""
        ...

    async def free_port(self) -> int:
        """A port that nothing listens on."""
        ...


class HivesContract:
    """Takes a `Fleet` from the fixture `fleet`."""

    async def test_a_hive_tells_how_it_does(self, fleet: Fleet):
        fleet.give_token("n1", TOKEN)
        port = await fleet.listen("n1", TOKEN)
        told = await fleet.hives.ask(a_host("n1", port))
        assert (told.hive_id, told.url) == ("n1", f"http://127.0.0.1:{port}")
        assert told.workers.total == told.workers.idle + told.workers.busy
        assert told.devices is not None and told.devices.conditions == []

    async def test_of_hives_each_is_asked_with_its_own_token(self, fleet: Fleet):
        for name, token in (("n1", TOKEN), ("n2", OTHER)):
            fleet.give_token(name, token)
            told = await fleet.hives.ask(a_host(name, await fleet.listen(name, token)))
            assert told.hive_id == name

    async def test_one_that_nobody_made_a_token_for(self, fleet: Fleet):
        port = await fleet.listen("n1", TOKEN)
        with pytest.raises(NoTokenYet):
            await fleet.hives.ask(a_host("n1", port))

    async def test_a_port_that_nothing_listens_on(self, fleet: Fleet):
        fleet.give_token("n1", TOKEN)
        assert await self.silence(fleet, await fleet.free_port()) == "hive_unreachable"

    async def test_one_that_has_another_token(self, fleet: Fleet):
        fleet.give_token("n1", OTHER)
        assert await self.silence(fleet, await fleet.listen("n1", TOKEN)) == "hive_not_proven"

    async def test_one_that_is_another_nodes(self, fleet: Fleet):
        fleet.give_token("n1", TOKEN)
        assert await self.silence(fleet, await fleet.listen("n2", TOKEN)) == "wrong_hive"

    async def test_a_token_that_was_just_changed_counts(self, fleet: Fleet):
        fleet.give_token("n1", OTHER)
        port = await fleet.listen("n1", TOKEN)
        assert await self.silence(fleet, port) == "hive_not_proven"
        fleet.give_token("n1", TOKEN)
        assert (await fleet.hives.ask(a_host("n1", port))).hive_id == "n1"

    async def silence(self, fleet: Fleet, port: int) -> str:
        with pytest.raises(HiveSilent) as raised:
            await fleet.hives.ask(a_host("n1", port))
        assert raised.value.problem.message and raised.value.problem.what_to_do
        return raised.value.problem.code
