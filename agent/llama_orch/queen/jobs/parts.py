"""What jobs work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ansible.runs import Runs
from ..ansible.ssh import SshSetup
from ..ansible.ssh_keys import KnownHosts
from ..fleet.hive_tokens import HiveTokens
from ..fleet.hives import HiveClient
from ..fleet.states import NodeStates
from ..inventory.view import Inventory
from ..store.store import Store
from .events import JobEvents

Variables = dict[str, str | int | bool]


@dataclass(frozen=True)
class Parts:
    """The queen's parts that jobs use, and what her settings say of jobs. `ran` counts a playbook by how it ended."""

    store: Store
    inventory: Inventory
    states: NodeStates
    events: JobEvents
    runs: Runs
    client: HiveClient
    tokens: HiveTokens
    known_hosts: KnownHosts
    ssh: SshSetup
    extra_vars: Variables
    verify_timeout_s: float
    change_own_machine: bool
    ran: Callable[[str, str], None]
