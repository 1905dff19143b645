"""What jobs work with, around runs and hives in memory: the records are in a database, tokens in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llama_orch.queen.ansible.ssh import SshSetup
from llama_orch.queen.ansible.ssh_keys import KnownHosts
from llama_orch.queen.fleet.hive_tokens import HiveTokens
from llama_orch.queen.fleet.states import NodeStates
from llama_orch.queen.inventory.view import Host, Inventory
from llama_orch.queen.jobs.events import JobEvents
from llama_orch.queen.jobs.parts import Parts
from llama_orch.queen.store.store import Store

from .memory_hives import MemoryHives
from .memory_runs import MemoryRuns


class FixedInventory(Inventory):
    """Has the hosts that the test put into `hosts`: no files and no Ansible."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, cache=folder / "view.json", environment={}, cwd=folder, user="u", hive_port=8081)

    async def refresh(self) -> bool:
        """There is nothing to look at."""
        return False

    async def unregister(self, name: str) -> None:
        """Take a host out."""
        self.hosts.pop(name, None)


class Site:
    """Parts with the hosts that are named, whose logins the queen does not try."""

    def __init__(
        self, folder: Path, store: Store, *hosts: Host, ran: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        self.store = store
        self.runs = MemoryRuns(*(host.name for host in hosts))
        self.hives = MemoryHives()
        self.states = NodeStates(store, failed_hold_s=60)
        self.inventory = FixedInventory(folder)
        self.inventory.hosts = {host.name: host for host in hosts}
        known_hosts = folder / "known_hosts"
        self.parts = Parts(
            store=store,
            inventory=self.inventory,
            states=self.states,
            events=JobEvents(store),
            runs=self.runs,
            hives=self.hives,
            tokens=HiveTokens(folder / "secrets"),
            known_hosts=KnownHosts(known_hosts),
            ssh=SshSetup(folder / "key", known_hosts, 5),
            extra_vars={"of_the_site": "1"},
            # The hive is asked once.
            verify_timeout_s=-1,
            change_own_machine=True,
            ran=ran,
        )
