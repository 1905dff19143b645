"""Asks every hive again and again how it does; a node is active as soon as its hive answers, whoever made it one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llama_orch.contract.queen import NodeHive

from ..inventory.view import Host, Inventory
from .hives import Hives, HiveSilent, NoTokenYet
from .states import NodeStates

log = logging.getLogger(__name__)

MISSES_UNTIL_UNREACHABLE = 3
MAX_AT_ONCE = 16
# A hive that does not answer is asked less and less often, up to this many intervals apart.
MAX_BACK_OFF = 6


@dataclass
class _BackOff:
    misses: int = 0
    next_round: int = 0


class Prober:
    """One round every `interval_s` seconds, sooner after `wake`."""

    def __init__(
        self,
        inventory: Inventory,
        states: NodeStates,
        hives: Hives,
        interval_s: float,
        *,
        failed: Callable[[str], None],
        seen: Callable[[str, NodeHive], Awaitable[None]],
        gone: Callable[[str], None],
    ) -> None:
        self._inventory = inventory
        self._states = states
        self._hives = hives
        self._interval_s = interval_s
        self._failed = failed
        self._seen = seen
        self._gone = gone
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._back_off: dict[str, _BackOff] = {}
        self._round = 0
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Ask everybody now."""
        for back_off in self._back_off.values():
            back_off.next_round = 0
        self._wake.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.ask_all()
            except Exception:
                log.exception("a round of questions to hives failed")
            try:
                await asyncio.wait_for(self._wake.wait(), self._interval_s)
            except TimeoutError:
                continue

    async def ask_all(self) -> None:
        """One round."""
        self._round += 1
        hosts = [host for host in self._inventory.hosts.values() if not host.templated]
        for gone in set(self._back_off) - {host.name for host in hosts}:
            del self._back_off[gone]
            self._gone(gone)
        due = [host for host in hosts if self._back_off.setdefault(host.name, _BackOff()).next_round <= self._round]
        await asyncio.gather(*(self._ask(host) for host in due))
        await self._states.flush()

    async def _ask(self, host: Host) -> None:
        try:
            await self._ask_and_note(host)
        except Exception:
            # The other hives' answers must not be lost with this one's.
            log.exception("what the hive of %s answered could not be dealt with", host.name)

    async def _ask_and_note(self, host: Host) -> None:
        back_off = self._back_off[host.name]
        try:
            async with self._at_once:
                hive = await self._hives.ask(host)
            back_off.misses = 0
            if host.name in self._inventory.hosts:
                await self._states.seen(host.name, hive)
                await self._seen(host.name, hive)
        except NoTokenYet:
            back_off.misses = 0
        except HiveSilent as silence:
            self._failed(silence.problem.code)
            back_off.misses += 1
            back_off.next_round = self._round + min(back_off.misses, MAX_BACK_OFF)
            if back_off.misses >= MISSES_UNTIL_UNREACHABLE and host.name in self._inventory.hosts:
                await self._states.missed(host.name, silence.problem)
            elif back_off.misses < MISSES_UNTIL_UNREACHABLE:
                back_off.next_round = self._round + 1
