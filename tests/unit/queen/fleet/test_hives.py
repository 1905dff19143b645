"""The queen's client of hives asks applications that speak a hive's contract; hives in memory do the same."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llama_orch.queen.fleet.hive_tokens import HiveTokens
from llama_orch.queen.fleet.hives import HiveClient
from tests.support import ports
from tests.support.fake_hive import fake_hive
from tests.support.hives_contract import HivesContract
from tests.support.memory_hives import MemoryHive, MemoryHives
from tests.support.serving import serving


class Loopback:
    """Token files, and applications on sockets, which `listening` ends."""

    def __init__(self, folder: Path, listening: contextlib.AsyncExitStack) -> None:
        self._tokens = folder / "hives"
        self._tokens.mkdir(mode=0o700)
        self._listening = listening
        self.hives = HiveClient(HiveTokens(folder), 5)

    def give_token(self, node_name: str, token: str) -> None:
        path = self._tokens / node_name
        path.touch(0o600)
        path.write_text(token)

    async def listen(self, hive_id: str, token: str) -> int:
        url = await self._listening.enter_async_context(serving(fake_hive(hive_id, token)))
        return int(url.rpartition(":")[2])

    async def free_port(self) -> int:
        return ports.free_port()


class Memory:
    """Hives by number."""

    def __init__(self) -> None:
        self.hives = MemoryHives()

    def give_token(self, node_name: str, token: str) -> None:
        self.hives.tokens[node_name] = token

    async def listen(self, hive_id: str, token: str) -> int:
        port = await self.free_port()
        self.hives.listening[port] = MemoryHive(hive_id, token)
        return port

    async def free_port(self) -> int:
        return 8081 + len(self.hives.listening)


class TestHiveClient(HivesContract):
    """What asks hives, over HTTP."""

    @pytest.fixture
    async def fleet(self, tmp_path: Path) -> AsyncIterator[Loopback]:
        async with contextlib.AsyncExitStack() as listening:
            fleet = Loopback(tmp_path, listening)
            yield fleet
            await fleet.hives.close()


class TestMemoryHives(HivesContract):
    """What asks hives, in memory."""

    @pytest.fixture
    def fleet(self) -> Memory:
        return Memory()
